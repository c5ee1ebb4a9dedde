"""The fit loop: steps, validation, early stopping, checkpoints.

Letters: K tasks, R units that stop early on their own (1 for a joint net, M for nets side by side), B rows of a task in a step.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from taskloom.deep._losses import TaskLosses
from taskloom.deep._nets import OwnRowsNet, SharedRowsNet
from taskloom.deep._options import FitOptions
from taskloom.deep._stacked import StackedNets, keep_better
from taskloom.deep._update import UpdateStep
from taskloom.tasks import ModelFileError, OptionError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Feed:
    """Where a loop's rows come from.

    Attributes:
        train: maps a step number, and the nets still in training (None: all), to features and labels (K, B).
        validation: all validation rows of those nets, in parts.
        losses: of training outputs (K, B, C) and labels (K, B).
        look: of validation outputs and labels.
        judge: maps validation losses (K,) to the criteria (R,) of early stopping.
        own_rows: rows (K, B, ...) of a batch belong to a task each, and some tasks' can go through the net without the others.
    """

    train: Callable[[int, Tensor | None], Batch]
    validation: Callable[[Tensor | None], Iterator[Batch]]
    losses: TaskLosses
    look: TaskLosses
    judge: Callable[[Tensor], Tensor]
    own_rows: bool = False


class FitLoop:
    """Trains a module and keeps, for each unit, the weights with the least validation loss.

    The state is explicit: `state_dict` after any step, loaded into a fresh loop, goes on as if there had been no stop, to the
    bit on one device. Randomness inside the module (dropout) comes from torch's generator, whose state is part of it.

    Args:
        module: as `Fabric.setup` gives it; maps a batch's features to outputs (K, B, C).
        update: how one step moves the weights.
        feed: rows, losses, criteria.
        options: how long.
        origin: what a checkpoint must share with the fit that goes on from it: data, seed, settings.

    Attributes:
        step: optimizer steps done.
        best: state dict with the best weights of each unit.
        best_losses: validation losses (K,) at each unit's best.
        unit_steps: (R,) steps each unit did before it stopped.
        curve: validation criteria (R,) at each look, with a stopped unit's left as it was.
    """

    def __init__(self, module: nn.Module, update: UpdateStep, feed: Feed, options: FitOptions, origin: str = "") -> None:
        self.module, self.update, self.feed, self.options, self.origin = module, update, feed, options, origin
        self.update.all_present, self.update.own_rows = feed.losses.complete, feed.own_rows
        self.update.masks_absent = True
        # The layouts that the loop wraps around a net carry no hooks of anyone's: they are run without the checks for them.
        self._forward: Callable[..., Tensor] = (
            module.forward if isinstance(module, SharedRowsNet | OwnRowsNet | StackedNets) else module
        )
        self.step = 0
        # Nets side by side that still train, once enough of them have stopped; None: all.
        self.chosen: Tensor | None = None
        self.train_losses, self.look_losses = feed.losses, feed.look
        self.best = {name: value.detach().clone() for name, value in module.state_dict().items()}
        self.best_losses = self._validation_losses(None)
        criteria = feed.judge(self.best_losses).cpu()
        self.best_criteria = criteria.nan_to_num(torch.inf)
        self.waited = torch.zeros(len(criteria), dtype=torch.long)
        self.unit_steps = torch.zeros(len(criteria), dtype=torch.long)
        self.curve: list[tuple[int, Tensor]] = [(0, criteria)]

    def run(self, checkpoint: Path | None = None, stop_after: int | None = None) -> None:
        """Train until every unit has stopped, saving a checkpoint every `checkpoint_every` steps and at the end.

        Args:
            checkpoint: file to save to and, if it exists, to go on from.
            stop_after: leave after that many steps in all, as if interrupted.
        """
        if checkpoint is not None and checkpoint.exists():
            load_checkpoint(checkpoint, self)
        if checkpoint is not None:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
        last = min(self.options.max_steps, stop_after or self.options.max_steps)
        running = bool(self.is_active().any())
        while self.step < last and running:
            x, labels = self.feed.train(self.step, self.chosen)
            self.update.step(partial(self._losses, x, labels))
            self.step += 1
            if self.step % self.options.validate_every == 0 or self.step == self.options.max_steps:
                self._look()
                running = bool(self.is_active().any())
                self._narrow_if_worth()
            at_end = self.step == last or not running
            if checkpoint is not None and (at_end or self.step % self.options.checkpoint_every == 0):
                save_checkpoint(checkpoint, self)

    def is_active(self) -> Tensor:
        """(R,) which units still train."""
        return self.waited < self.options.patience

    def has_failed(self) -> Tensor:
        """(R,) which units diverged without ever getting better than their initial weights."""
        return ~self.curve[-1][1].isfinite() & ~(self.best_criteria < self.curve[0][1].nan_to_num(torch.inf))

    def _losses(self, x: Tensor, labels: Tensor, tasks: list[int] | None = None) -> Tensor:
        """Losses (K,) of a batch; with own rows, of some tasks alone if a step wants no more, and NaN for the others."""
        if tasks is None or len(tasks) == len(labels):
            return self.train_losses.means(self._forward(x), labels)
        means = self.train_losses.take(tasks).means(self._forward(x[tasks], tasks), labels[tasks])
        return means.new_full((len(labels),), torch.nan).index_copy(0, torch.tensor(tasks, device=means.device), means)

    def _narrow_if_worth(self) -> None:
        """Leave nets that have stopped out of the product when they are a quarter of it: they would cost time for nothing."""
        active = self.is_active().nonzero().squeeze(1)
        now = len(self.waited) if self.chosen is None else len(self.chosen)
        if isinstance(self.module, StackedNets) and 0 < len(active) <= 0.75 * now:
            self._narrow(active)

    def _narrow(self, active: Tensor) -> None:
        if isinstance(self.module, StackedNets) and self.module.narrow(active):
            self.chosen = active
            self.train_losses, self.look_losses = (each.take(active.tolist()) for each in (self.feed.losses, self.feed.look))

    def _look(self) -> None:
        losses = self._validation_losses(self.chosen)
        if self.chosen is not None:
            # What has stopped keeps what it had.
            losses = self.best_losses.index_copy(0, self.chosen.to(losses.device), losses)
        criteria, active = self.feed.judge(losses).cpu(), self.is_active()
        improved = active & (criteria < self.best_criteria)
        if improved.any():
            # The state dict is the module's own storage: only what has improved is copied.
            keep_better(self.best, self.module.state_dict(), improved.to(losses.device))
            spread = improved.to(losses.device).expand(len(losses)) if len(improved) == 1 else improved.to(losses.device)
            # A net of several tasks has a row of losses.
            self.best_losses = torch.where(spread.view(-1, *[1] * (losses.dim() - 1)), losses, self.best_losses)
            self.best_criteria = torch.where(improved, criteria, self.best_criteria)
        self.waited = torch.where(improved, 0, self.waited + active)
        # A loss that is no longer finite never comes back.
        self.waited[active & ~criteria.isfinite()] = self.options.patience
        self.unit_steps[active] = self.step
        self.curve.append((self.step, torch.where(active, criteria, self.curve[-1][1])))

    def _validation_losses(self, chosen: Tensor | None) -> Tensor:
        return mean_losses(self.module, self.look_losses, self.feed.validation(chosen))

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the fit depends on."""
        return {
            "origin": self.origin,
            "step": self.step,
            "module": self.module.state_dict(),
            "update": self.update.state_dict(),
            "rng": torch.get_rng_state(),
            "device_rng": torch.cuda.get_rng_state() if torch.cuda.is_available() else torch.empty(0),
            "best": self.best,
            "best_losses": self.best_losses,
            "best_criteria": self.best_criteria,
            "waited": self.waited,
            "unit_steps": self.unit_steps,
            "chosen": torch.arange(len(self.waited)) if self.chosen is None else self.chosen,
            "curve_steps": [step for step, _ in self.curve],
            "curve": torch.stack([criteria for _, criteria in self.curve]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict` of a loop that was built with the same arguments.

        Raises:
            ValueError: it comes from other data, another seed or other settings.
        """
        if state["origin"] != self.origin:
            raise ValueError(f"the state was saved by a fit of {state['origin']!r}, this one is of {self.origin!r}")
        self.module.load_state_dict(state["module"])
        self.update.load_state_dict(state["update"])
        torch.set_rng_state(state["rng"])
        if len(state["device_rng"]) and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["device_rng"])
        self.step, self.best, self.best_losses = state["step"], state["best"], state["best_losses"]
        self.best_criteria, self.waited, self.unit_steps = state["best_criteria"], state["waited"], state["unit_steps"]
        if len(state["chosen"]) < len(self.waited):
            self._narrow(state["chosen"])
        self.curve = list(zip(state["curve_steps"], state["curve"], strict=True))


@torch.no_grad()
def mean_losses(module: nn.Module, losses: TaskLosses, batches: Iterator[Batch]) -> Tensor:
    """Mean losses, in the shape that `losses` gives them, over all batches; the module looks in evaluation mode."""
    module.eval()
    parts = [losses.sums(module(x), labels) for x, labels in batches]
    module.train()
    sums, counts = (torch.stack(part).sum(dim=0) for part in zip(*parts, strict=True))
    return sums / counts


def save_checkpoint(path: Path, loop: FitLoop) -> None:
    """Write a loop's state to a temporary name and rename it: a kill leaves the old checkpoint or the new one, whole."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    torch.save(loop.state_dict(), temporary)
    temporary.replace(path)


def load_checkpoint(path: Path, loop: FitLoop) -> None:
    """Go on from a checkpoint file.

    Raises:
        ModelFileError: the file is damaged or belongs to another net.
    """
    device = next(loop.module.parameters()).device
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        for key in ("rng", "device_rng", "best_criteria", "waited", "unit_steps", "chosen", "curve"):
            state[key] = state[key].cpu()
        loop.load_state_dict(state)
    except (RuntimeError, KeyError, TypeError, EOFError, ValueError, OSError, pickle.UnpicklingError) as error:
        raise ModelFileError(
            f"`checkpoint`='{path}': damaged, or of another net, other data or other settings; delete it"
        ) from error


def prepare(fabric: Fabric, net: nn.Module, optimizer: Optimizer, precision: str) -> tuple[nn.Module, Optimizer]:
    """A net and its optimizer ready for a loop on the fabric's device.

    On one device and in full precision the fabric's wrappers have nothing to do but cost as much as a small layer, so there
    net and optimizer themselves are given back.
    """
    module, wrapped = fabric.setup(net, optimizer)
    is_plain = fabric.world_size == 1 and precision in {"32-true", "64-true"}
    return (net, optimizer) if is_plain else (module, wrapped)


def make_fabric(options: FitOptions) -> Fabric:
    """A fabric for one device, with the options' precision.

    Raises:
        OptionError: there is no such accelerator here.
    """
    # It takes as long to import as torch itself, and whoever only predicts does not need it.
    from lightning_fabric import Fabric

    try:
        return Fabric(accelerator=options.accelerator, devices=1, precision=cast("Any", options.precision))
    except (RuntimeError, ValueError) as error:
        raise OptionError(
            f"`accelerator`={options.accelerator!r} cannot be used here ({error}); try 'auto' or 'cpu'"
        ) from error
