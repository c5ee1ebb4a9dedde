"""The documentation: every example runs and prints what the page says, every public name is there, the site builds."""

import contextlib
import io
import os
import re
import subprocess
import sys
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
ROOMS = ("tasks", "linear", "deep", "study")
BIN = Path(sys.executable).parent
# These would start this test again, or install what is installed.
NOT_RUN = re.compile(r"(make (test|setup|lint|docs|bench|help)|git clone)\b")
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass
class Block:
    """A fenced block of a page: its language, its first line, its text, and the output that the page shows under it."""

    page: Path
    language: str
    line: int
    text: str
    output: str | None = None

    @property
    def place(self):
        return f"{self.page.relative_to(ROOT)}, the {self.language} block at line {self.line}"


def blocks_of(page):
    """The bash and python blocks of a page; a text block right under one is its output."""
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    blocks = [Block(page, m[1], text[: m.start()].count("\n") + 1, m[2]) for m in found]
    for (one, match), (two, after) in pairwise(zip(blocks, found, strict=True)):
        if two.language == "text" and not text[match.end() : after.start()].strip():
            one.output = two.text
    return [block for block in blocks if block.language in {"bash", "python"}]


def run_bash(block, folder):
    """What the block prints; a command that fails stops it."""
    lines = []
    for line in block.text.splitlines():
        if NOT_RUN.match(line):
            continue
        line = f"{line.replace('make demo', 'taskloom demo')} --out demo" if line == "make demo" else line
        lines.append(re.sub(r"^\.venv/bin/", "", line))
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", "-euo", "pipefail", "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{block.place} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_python(block, module):
    """What the block prints; blocks of a page go on where the one before ended."""
    # Empty lines put errors, and what a cached result is found by, at the block's own place in the page.
    code = compile("\n" * block.line + block.text, str(block.page), "exec", dont_inherit=True)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(code, module.__dict__)  # noqa: S102
    except Exception as error:
        error.add_note(f"in {block.place}")
        raise
    return printed.getvalue()


def _form(output):
    """Output without what differs from machine to machine: numbers, and the space that they take."""
    shown = re.sub(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", "0", output)
    return [" ".join(line.split()) for line in shown.splitlines() if line.strip()]


@pytest.fixture(scope="session")
def fits_of_the_docs(tmp_path_factory):
    """One cache for all pages: a study that two of them show is run once."""
    return tmp_path_factory.mktemp("docs-cache")


@pytest.fixture
def module(request, tmp_path, monkeypatch, fits_of_the_docs):
    """A fresh module for the Python blocks of a page, in a folder of its own; what it registers is forgotten after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TASKLOOM_CACHE", str(fits_of_the_docs))
    monkeypatch.setenv("COLUMNS", "100")
    for known in (registry._RECIPES, registry._PREDICTORS):
        for name, value in known.items():
            monkeypatch.setitem(known, name, value)
    known = {id(kept): set(kept) for kept in (registry._RECIPES, registry._PREDICTORS)}
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    rich.reconfigure(width=100)
    yield module
    rich.reconfigure()
    for kept in (registry._RECIPES, registry._PREDICTORS):
        for name in set(kept) - known[id(kept)]:
            del kept[name]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks_of(p)], ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_run_and_print_what_the_page_shows(page, module, tmp_path):
    for block in blocks_of(page):
        printed = run_bash(block, tmp_path) if block.language == "bash" else run_python(block, module)
        if block.output is not None:
            assert _form(printed) == _form(block.output), f"{block.place} prints:\n{printed}"


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
    names = sys.modules[f"taskloom.{room}"].__all__
    assert not [name for name in names if f'id="taskloom.{room}.{name}"' not in html]


def test_the_site_needs_no_network(site):
    for page in site.rglob("*.html"):
        assert not re.findall(r'(?:src|<link[^>]*href)="(?:https?:)?//[^"]*"', page.read_text(encoding="utf-8")), page
