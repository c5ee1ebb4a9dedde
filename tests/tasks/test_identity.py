import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from taskloom.deep import MLP, JointRecipe
from taskloom.tasks._identity import identify


def make(width):
    return lambda shape, tasks: (width, shape, tasks)


def make_with_default(width):
    def build(shape, tasks, size=width):
        return size, shape, tasks

    return build


@dataclass(frozen=True)
class MyMLP:
    hidden: tuple = (64, 64)
    dropout: float = 0.0


class Factory:
    def __init__(self, width):
        self.width = width

    def __call__(self, shape, tasks):
        return self.width


def _key(net):
    return json.dumps(JointRecipe(net=net).settings(), sort_keys=True)


def test_nets_that_differ_have_different_keys():
    nets = [
        make(2), make(3), make_with_default(2), make_with_default(3), functools.partial(make, 2), functools.partial(make, 3),
        MLP(), MyMLP(), Factory(2), Factory(3), Factory(2).__call__, lambda s, t: 1, lambda s, t: 2,
    ]  # fmt: skip
    assert len({_key(net) for net in nets}) == len(nets)


def test_equal_nets_have_one_key_in_any_process():
    code = "from tests.tasks.test_identity import *; from tests.tasks.test_identity import _key\n"
    code += "print([_key(net) for net in (make(2), functools.partial(make, 2), Factory(2), MLP(), MyMLP(), {3, 'a', 'b'})])"
    keys = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert keys[0] == keys[1]
    assert "0x" not in keys[0]


def test_code_typed_at_a_prompt_is_told_apart_by_what_it_does():
    keys = set()
    for body in ("1", "2", "s"):
        space = {}
        exec(f"def net(s, t):\n    return {body}", space)  # noqa: S102
        keys.add(json.dumps(identify(space["net"])))
    assert len(keys) == 3


def test_plain_values_are_themselves():
    value = {"a": [1, 2.5, "x", None, True], "b": {"c": []}}
    assert identify(value) == value
    assert identify({3, 1, 2}) == [1, 2, 3]
