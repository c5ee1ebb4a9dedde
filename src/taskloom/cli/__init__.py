"""The command line: `taskloom demo`, `study`, `fit`, `predict` and `recipes`; `taskloom COMMAND --help` explains each.

Bad input ends with one sentence on standard error and exit code 2. Progress goes to standard error, and only to a terminal.
"""


def main() -> None:
    """Run the command line."""
    from taskloom.cli._app import app

    app()


__all__ = ["main"]
