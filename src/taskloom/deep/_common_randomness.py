"""Forward passes of one batch that draw the same random numbers, and move running statistics once.

Losses of one batch before and after an update are told apart by the update alone only if dropout drops the same units in both
passes; and batch normalisation must see a batch once, however many passes it goes through.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import register_module_forward_pre_hook

T = TypeVar("T")


class CommonRandomness:
    """Runs the passes of a batch.

    Random numbers are those of torch's generators, on the CPU and on the devices of the parameters; after the batch they stand
    where one pass leaves them. Which modules keep running statistics is seen in the first passes of batches, until each task
    was in one, unless `meet` has shown the net before.

    Args:
        parameters: whose devices have generators.
        enabled: False lets every pass draw anew and move statistics, as plain loops do.

    Examples:
        >>> passes = CommonRandomness([], enabled=True)
        >>> passes.begin()
        >>> torch.equal(passes.run(lambda: torch.rand(3)), passes.run(lambda: torch.rand(3)))
        True
    """

    def __init__(self, parameters: Iterable[Tensor], *, enabled: bool = True) -> None:
        devices = {weight.device for weight in parameters}
        self.enabled = enabled
        self._devices = sorted((one for one in devices if one.type != "cpu"), key=str)
        self._states: list[Tensor] | None = None
        self._norms: dict[int, _NormBase] = {}
        self._met: set[int] = set()
        self._is_looking = enabled

    def meet(self, net: nn.Module) -> None:
        """Find the modules that keep running statistics."""
        self._norms = {id(module): module for module in net.modules() if isinstance(module, _NormBase)}
        self._is_looking = False

    def saw(self, n_tasks: int, absent: Collection[int]) -> None:
        """Which tasks were not in a pass: the head of one that was absent so far may have modules that none has met."""
        if self._is_looking:
            self._met.update(k for k in range(n_tasks) if k not in absent)
            self._is_looking = len(self._met) < n_tasks

    def begin(self) -> None:
        """A new batch."""
        self._states = None

    def run(self, forward: Callable[[], T]) -> T:
        """One pass of the batch."""
        if not self.enabled:
            return forward()
        if self._states is None:
            self._states = self._generators()
            return self._watched(forward) if self._is_looking else forward()
        torch.set_rng_state(self._states[0])
        for device, state in zip(self._devices, self._states[1:], strict=True):
            _backend(device).set_rng_state(state, device)
        if not self._norms:
            return forward()
        with _without_statistics(self._norms.values()):
            return forward()

    def _generators(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(_backend(device).get_rng_state(device) for device in self._devices)]

    def _watched(self, forward: Callable[[], T]) -> T:
        def note(module: nn.Module, _inputs: Any) -> None:
            if isinstance(module, _NormBase):
                self._norms[id(module)] = module

        handle = register_module_forward_pre_hook(note)
        try:
            with warnings.catch_warnings():
                # A compiled net tells that hooks are called once more for it, which does no harm here.
                warnings.filterwarnings("ignore", message=r"Using `torch.compile\(module\)` when there are global hooks")
                return forward()
        finally:
            handle.remove()


def _backend(device: torch.device) -> Any:
    return torch.get_device_module(device)


@contextmanager
def _without_statistics(norms: Iterable[_NormBase]) -> Generator[None]:
    """Modules that train leave their running statistics alone inside."""
    moving = [module for module in norms if module.training and module.track_running_stats]
    for module in moving:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in moving:
            module.track_running_stats = True
