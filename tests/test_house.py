"""The house: rooms, names, sizes."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import taskloom

ROOT = Path(taskloom.__file__).parent
FLOORS = {"tasks": 0, "linear": 1, "deep": 2, "sites": 2, "relate": 3, "engines": 3, "study": 4, "cli": 5}
ROOMS = [room for room in FLOORS if (ROOT / room).is_dir()]
MODULES = sorted(ROOT.rglob("*.py"))


def _imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "taskloom":
                yield from (f"taskloom.{name.name}" for name in node.names)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_below(room):
    for path in (ROOT / room).rglob("*.py"):
        for name in _imported(path):
            parts = name.split(".")
            if parts[0] == "taskloom" and len(parts) > 1 and parts[1] in FLOORS and parts[1] != room:
                assert FLOORS[parts[1]] < FLOORS[room], f"{path.name} imports {name}"


def test_private_modules_of_a_room_stay_in_it():
    for path in MODULES:
        room = path.relative_to(ROOT).parts[0]
        for name in _imported(path):
            parts = name.split(".")
            if parts[0] == "taskloom" and any(part.startswith("_") for part in parts[2:]):
                assert parts[1] == room, f"{path} imports {name}"


@pytest.mark.parametrize("name", ["taskloom", *(f"taskloom.{room}" for room in ROOMS)])
def test_public_names_exist_are_sorted_and_documented(name):
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        thing = getattr(module, public)
        if isinstance(thing, type) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), public
    assert module.__doc__


def test_the_front_door_has_at_most_25_names_and_opens_lazily():
    import subprocess
    import sys

    assert len(taskloom.__all__) <= 25
    code = "import sys, taskloom; print(sorted({'torch', 'sklearn', 'polars'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    for name in taskloom.__all__:
        assert getattr(taskloom, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'stduy'"):
        _ = taskloom.stduy


def test_the_study_room_is_called_like_its_function():
    from taskloom.tasks import load_diabetes_tasks

    options = taskloom.StudyOptions(cache=False)
    assert taskloom.study(load_diabetes_tasks(), ["ridge"], seeds=1, options=options).summaries[0].recipe == "ridge"
    assert taskloom.study.StudyOptions is taskloom.StudyOptions


def test_versions_agree():
    from importlib import metadata

    assert metadata.version("taskloom") == taskloom.__version__


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_small_and_finished(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text)), "a module opens with what it is for"
    for node in ast.walk(ast.parse(text)):
        assert not isinstance(node, ast.Assert), f"assert in line {getattr(node, 'lineno', '?')}"
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno <= 70, f"{node.name} does not fit a screen"
