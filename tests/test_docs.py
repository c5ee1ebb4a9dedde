"""The documentation: every example runs and prints what the page shows, every public name is there, the site builds.

`python -m tests.test_docs` runs the examples and writes what they print into the pages.
"""

import contextlib
import importlib
import io
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import rich
import typer

import taskloom
from taskloom.study import results_schema
from taskloom.tasks import _recipe as registry

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
ROOMS = ("tasks", "linear", "deep", "sites", "relate", "engines", "study")
BIN = Path(sys.executable).parent
# These would start this test again, or install what is installed.
NOT_RUN = re.compile(r"(make (test|setup|lint|docs|bench|help)|git clone)\b")
WIDTH = 100
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass
class Block:
    """A fenced block of a page that is run, and the text block after it, which shows what it prints."""

    page: Path
    text: str
    line: int
    shown: re.Match[str] | None = None

    @property
    def place(self):
        return f"{self.page.relative_to(ROOT)}, the block at line {self.line}"


def blocks_of(page):
    """The bash and Python blocks of a page, each with its language."""
    text = page.read_text(encoding="utf-8")
    fences = [*FENCE.finditer(text), None]
    for fence, after in pairwise(fences):
        if fence[1] in {"bash", "python"}:
            shown = after if after is not None and after[1] == "text" else None
            yield fence[1], Block(page, fence[2], text[: fence.start()].count("\n") + 1, shown)


def run_bash(block):
    """What the block prints; a command that fails stops it."""
    lines = [line for line in block.text.splitlines() if not NOT_RUN.match(line)]
    script = re.sub(r"^make demo$", "taskloom demo --out demo", "\n".join(lines), flags=re.MULTILINE)
    script = re.sub(r"^\.venv/bin/", "", script, flags=re.MULTILINE)
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{block.place} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_python(block, module):
    """What the block prints; it goes on where the one before it on the page ended."""
    # Empty lines put errors, and the source that a cached result is found by, at the block's own place in the page.
    code = compile("\n" * block.line + block.text, str(block.page), "exec", dont_inherit=True)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(code, module.__dict__)  # noqa: S102
    except Exception as error:
        error.add_note(f"in {block.place}")
        raise
    return printed.getvalue()


def run_page(page, folder):
    """Run a page in a folder: its blocks, and what each prints."""
    module = ModuleType("page")
    sys.modules["page"] = module
    rich.reconfigure(width=WIDTH)
    with contextlib.chdir(folder):
        for language, block in blocks_of(page):
            yield block, run_bash(block) if language == "bash" else run_python(block, module)
    rich.reconfigure()
    del sys.modules["page"]


def agree(printed, shown):
    """Whether two outputs are equal but for numbers and the space they take; a line `...` shown stands for any lines."""
    printed, shown = (
        "".join(" ".join(re.sub(r"[+-]?\d+(\.\d+)?", "0", line).split()) + "\n" for line in text.splitlines() if line.strip())
        for text in (printed, shown)
    )
    return (
        re.fullmatch(
            re.escape(shown).replace(
                r"\.\.\.\
",
                "(.*\n)*",
            ),
            printed,
        )
        is not None
    )


@pytest.fixture(scope="session")
def fits_of_the_docs(tmp_path_factory):
    """One cache for all pages: a study that two of them show is run once."""
    return tmp_path_factory.mktemp("docs-cache")


@pytest.fixture
def _as_before(monkeypatch, fits_of_the_docs):
    """The cache and the width of the pages; what a page registers is forgotten after it."""
    monkeypatch.setenv("TASKLOOM_CACHE", str(fits_of_the_docs))
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    kept = [(known, dict(known)) for known in (registry._RECIPES, registry._PREDICTORS)]
    yield
    for known, before in kept:
        known.clear()
        known.update(before)


@pytest.mark.parametrize("page", [p for p in PAGES if any(blocks_of(p))], ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.usefixtures("_as_before")
def test_examples_run_and_print_what_the_page_shows(page, tmp_path):
    for block, printed in run_page(page, tmp_path):
        assert block.shown is None or agree(printed, block.shown[2]), f"{block.place} prints:\n{printed}"


def _kind_of(part):
    """The type of a schema's value in words."""
    if "$ref" in part:
        return part["$ref"].rpartition("/")[2]
    if "enum" in part:
        return " or ".join(f"`{value}`" for value in part["enum"])
    if "const" in part:
        return f"`{part['const']}`"
    if part["type"] == "array":
        return f"list of {_kind_of(part['items'])}" if "items" in part else "list"
    return " or ".join([part["type"]] if isinstance(part["type"], str) else part["type"])


def schema_rows(part):
    """How the row of each field of an object begins, and of the objects inside it that have no name of their own."""
    for name, field in part.get("properties", {}).items():
        yield f"| `{name}` | {_kind_of(field)} | {field.get('description', '')}"
        yield from schema_rows(field)
        yield from schema_rows(field.get("items", {}))


def test_the_report_page_describes_every_field_of_the_results():
    page = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    schema = results_schema()
    expected = [row for part in (schema, *schema["$defs"].values()) for row in schema_rows(part)]
    lines = page.splitlines()
    assert not [row for row in expected if sum(line.startswith(row) for line in lines) < expected.count(row)]


def test_the_recipes_page_lists_every_recipe():
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8").splitlines()
    expected = [
        f"| `{name}` | `{recipe.__name__}` | {recipe.family} | {'yes' if recipe.is_baseline else 'no'} "
        f"| {recipe.summary} | {recipe.paper} |"
        for name, recipe in taskloom.recipe_classes().items()
    ]
    assert not [row for row in expected if row not in page]
    assert {f"## `{name}`" for name in taskloom.recipe_classes()} <= set(page)


def test_the_command_line_page_names_every_command_and_option():
    from taskloom.cli._app import app

    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    commands = typer.main.get_command(app).commands
    for name, command in commands.items():
        assert f"`taskloom {name}" in page
        options = [option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)]
        assert not [o for o in options if o.startswith("--") and o != "--help" and f"`{o}" not in page], name


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; a warning stops the build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("room", ROOMS)
def test_the_reference_has_every_public_name(site, room):
    html = (site / "api" / f"{room}.html").read_text(encoding="utf-8")
    names = importlib.import_module(f"taskloom.{room}").__all__
    assert not [name for name in names if f'id="taskloom.{room}.{name}"' not in html]


def test_the_site_needs_no_network(site):
    for page in site.rglob("*.html"):
        assert not re.findall(r'(?:src|<link[^>]*href)="(?:https?:)?//[^"]*"', page.read_text(encoding="utf-8")), page


def write_outputs(page, folder):
    """Put what the blocks of a page print into the text blocks after them; those with a line `...` are left alone."""
    text = page.read_text(encoding="utf-8")
    for block, printed in reversed(list(run_page(page, folder))):
        if block.shown is not None and "\n...\n" not in block.shown[2]:
            lines = [line.rstrip() for line in printed.strip("\n").splitlines()]
            text = "\n".join([text[: block.shown.start(2)] + lines[0], *lines[1:], text[block.shown.end(2) :]])
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    os.environ["COLUMNS"] = str(WIDTH)
    for each in PAGES:
        with tempfile.TemporaryDirectory() as temporary:
            write_outputs(each, temporary)
