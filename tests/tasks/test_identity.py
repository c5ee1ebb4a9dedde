import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

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


def _weighted(value):
    net = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(net.weight, value)
    torch.nn.init.zeros_(net.bias)
    return net


WIDTH = 3


def uses_a_global(shape, tasks):
    return WIDTH


def test_a_value_around_a_function_counts(monkeypatch):
    before = _key(uses_a_global)
    assert _key(uses_a_global) == before
    monkeypatch.setitem(globals(), "WIDTH", 4)
    assert _key(uses_a_global) != before


def test_what_cannot_be_identified_is_never_found_again():
    assert _key(functools.partial(make, object())) != _key(functools.partial(make, object()))


def _key(net):
    return json.dumps(JointRecipe(net=net).settings(), sort_keys=True)


def test_nets_that_differ_have_different_keys():
    nets = [
        make(2), make(3), make_with_default(2), make_with_default(3), functools.partial(make, 2), functools.partial(make, 3),
        functools.partial(make, np.arange(5000)), functools.partial(make, np.arange(5000) + (np.arange(5000) == 2500)),
        functools.partial(make, torch.zeros(3)), functools.partial(make, torch.ones(3)),
        functools.partial(make, _weighted(0.0)), functools.partial(make, _weighted(1.0)),
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
