"""Recipes that train nets: each task its own, or one for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

from torch import nn
from torch.optim import Optimizer

from taskloom.deep._dominance_step import DominanceWatch
from taskloom.deep._fit import NetFit, UpdateFactory, fit, fit_singles, new_net
from taskloom.deep._flops import trunk_flops
from taskloom.deep._nets import MLP, NetFactory, check_factory
from taskloom.deep._options import FitOptions, check_options
from taskloom.deep._predictor import NetPredictor
from taskloom.deep._update import SumStep, UpdateStep
from taskloom.tasks import Family, FitError, OptionError, Recipe, RecipeFit, TaskData, register_recipe


@register_recipe
@dataclass(frozen=True)
class SingleRecipe(Recipe):
    """Each task its own net, with its own learning rate chosen on its own validation rows: the baseline of all nets.

    The K nets at all learning rates are trained side by side as one stack, which changes nothing but the time.

    Attributes:
        net: maps the shape of a row and a list of tasks to a net with one output a regression or binary task and one a class
            for a multiclass task.
        options: batch size, length, precision, device.
        title: name in a study, if not `single`.

    Raises:
        OptionError: `net` is a name or a net itself, or `options` are no `FitOptions`.
    """

    net: NetFactory = field(default_factory=MLP)
    options: FitOptions = field(default_factory=FitOptions)
    title: str = ""

    name: ClassVar[str] = "single"
    summary: ClassVar[str] = "each task its own net: the baseline that every deep recipe is held against"
    family: ClassVar[Family] = "deep"
    is_baseline: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_making(self.net, self.options)

    def fit(self, train: TaskData, validation: TaskData, *, seed: int, budget: int = 4) -> RecipeFit:
        """Train K nets at `budget` learning rates and keep each task's best."""
        rates = self.options.candidate_rates(budget)
        best = fit_singles(self.net, train, validation, rates=rates, options=self.options, seed=seed)
        predictor = NetPredictor(best.nets, train.tasks, self.net, train.X.shape[1:])
        chosen = {"learning_rate": best.rates}
        fitted = RecipeFit(predictor, chosen, best.validation_loss, best.steps, best.total_steps, [best.curve])
        fitted.batches, fitted.trunk_flops = best.steps, self._flops(best.nets, train, best.steps)
        return fitted

    def _flops(self, nets: Sequence[nn.Module], train: TaskData, steps: int) -> float | None:
        """Of all nets together; None where they are of different make, as only the sum of their steps is known."""
        widths = {task.n_outputs: net for task, net in zip(train.tasks, nets, strict=True)}
        found = {trunk_flops(net, train.X.shape[1:]) for net in widths.values()}
        known = found.pop()
        return None if found or known is None else steps * self.options.batch_size * sum(known)


@dataclass
class Candidate:
    """A net trained at one learning rate, and what a report can know of its training.

    Attributes:
        fit: the net.
        steps: optimizer steps.
        passes: forward and backward passes of a batch through the trunk, in all; None: unknown.
        found: fields of a `RecipeFit`.
    """

    fit: NetFit
    steps: int
    passes: tuple[float, float] | None
    found: dict[str, Any] = field(default_factory=dict)


@register_recipe
@dataclass(frozen=True)
class JointRecipe(Recipe):
    """One net for all tasks, trained on the plain sum of their losses (Caruana 1997).

    The learning rate with the least mean validation loss is chosen.

    Attributes:
        net: as for `SingleRecipe`.
        options: batch size, length, precision, device.
        title: name in a study, if not `joint`.
        dominance_every: steps from one sample of which task moves which layer to the next (see `DominanceMeter`), for the
            report; 0, the default, measures nothing. Weights and scores stay the same to the bit, but time is spent on all
            candidates: with the default net a sample costs half a step to a whole one for each task, and a quarter with
            AdaTask, whose state tells it all; at 50 that is 3 percent for two tasks and 7 for eight. Recipes that join
            gradients by an aggregator refuse it.

    Raises:
        OptionError: `net` is a name or a net itself, `options` are no `FitOptions`, or `dominance_every` is no number of steps.
    """

    net: NetFactory = field(default_factory=MLP)
    options: FitOptions = field(default_factory=FitOptions)
    title: str = ""
    dominance_every: int = field(default=0, kw_only=True)

    name: ClassVar[str] = "joint"
    summary: ClassVar[str] = "one net with a head per task, trained on the plain sum of the losses"
    paper: ClassVar[str] = "Caruana, Multitask Learning, 1997"
    family: ClassVar[Family] = "deep"

    def __post_init__(self) -> None:
        _check_making(self.net, self.options)
        DominanceWatch([], self.dominance_every)

    def _refuse_dominance(self) -> None:
        if self.dominance_every:
            raise OptionError(
                f"`dominance_every`={self.dominance_every} of `{self.name}`: steps out of joined gradients have no parts that "
                "are due to one task; leave it at 0"
            )

    def fit(self, train: TaskData, validation: TaskData, *, seed: int, budget: int = 4) -> RecipeFit:
        """Train one net at each of `budget` learning rates and keep the best; `dominance` is that of the kept one."""
        rates = self.options.candidate_rates(budget)
        tried = [self.try_rate(train, validation, seed, rate) for rate in rates]
        alive = [i for i, one in enumerate(tried) if not one.fit.failed]
        if not alive:
            raise FitError(f"every learning rate of {rates} diverged; try smaller ones")
        place = min(alive, key=lambda i: tried[i].fit.validation_loss.mean())
        best = tried[place]
        found: dict[str, Any] = {"curves": [best.fit.curve]} | best.found
        found["chosen"] = {"learning_rate": rates[place]} | found.get("chosen", {})
        return RecipeFit(
            predictor=NetPredictor([best.fit.net], train.tasks, self.net, train.X.shape[1:]),
            validation_loss=best.fit.validation_loss,
            steps=best.steps,
            total_steps=sum(one.steps for one in tried),
            batches=best.fit.steps,
            trunk_flops=self._flops(best, train),
            **found,
        )

    def baseline(self) -> SingleRecipe:
        """Nets of the same make for each task alone."""
        return SingleRecipe(self.net, self.options)

    def update(self) -> UpdateFactory:
        """What moves the weights in each step; recipes of one net differ in it."""
        return SumStep

    def try_rate(self, train: TaskData, validation: TaskData, seed: int, rate: float) -> Candidate:
        """Train one net at one learning rate."""
        net = new_net(self.net, train.X.shape[1:], train.tasks, seed)
        watch, made = DominanceWatch([task.name for task in train.tasks], self.dominance_every), list[UpdateStep]()
        update = partial(_noted, self.update(), made)
        options = replace(self.options, learning_rate=rate)
        found = fit(net, train, validation, options=options, seed=seed, update=watch.over(update, net))
        each = made[0].trunk_passes(train.n_tasks)
        passes = None if each is None else (found.steps * each[0], found.steps * each[1])
        return Candidate(found, found.steps, passes, {"dominance": watch.found()})

    def _flops(self, best: Candidate, train: TaskData) -> float | None:
        known = trunk_flops(best.fit.net, train.X.shape[1:])
        if known is None or best.passes is None:
            return None
        rows = self.options.batch_size * (1 if train.is_shared else train.n_tasks)
        return float(round(rows * (best.passes[0] * known[0] + best.passes[1] * known[1])))


def _check_making(net: Any, options: Any) -> None:
    check_factory(net)
    check_options(options)


def _noted(update: UpdateFactory, made: list[UpdateStep], optimizer: Optimizer, fabric: Any) -> UpdateStep:
    """A step of that make, which is kept to be asked later."""
    made.append(update(optimizer, fabric))
    return made[-1]
