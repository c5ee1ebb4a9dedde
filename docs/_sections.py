"""Titles of docstring sections that griffe reads by another name; without this it would show them as plain Markdown."""

import griffe

_TITLES = {"Example:": "Examples:", "Class attributes:": "Attributes:"}


class SectionTitles(griffe.Extension):
    """Rename section titles before they are parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            lines = obj.docstring.value.splitlines()
            obj.docstring.value = "\n".join(_TITLES.get(line.strip(), line) for line in lines)
