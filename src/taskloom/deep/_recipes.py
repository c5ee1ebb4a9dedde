"""Recipes that train nets: each task its own, or one for all."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from taskloom.deep._dominance_step import DominanceWatch
from taskloom.deep._fit import NetFit, UpdateFactory, fit, fit_singles, new_net
from taskloom.deep._nets import MLP, NetFactory
from taskloom.deep._options import FitOptions
from taskloom.deep._predictor import NetPredictor
from taskloom.deep._update import SumStep
from taskloom.tasks import Family, FitError, Recipe, RecipeFit, TaskData, register_recipe


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
    """

    net: NetFactory = field(default_factory=MLP)
    options: FitOptions = field(default_factory=FitOptions)
    title: str = ""

    name: ClassVar[str] = "single"
    summary: ClassVar[str] = "each task its own net: the baseline that every deep recipe is held against"
    family: ClassVar[Family] = "deep"
    is_baseline: ClassVar[bool] = True

    def fit(self, train: TaskData, validation: TaskData, *, seed: int, budget: int = 4) -> RecipeFit:
        """Train K nets at `budget` learning rates and keep each task's best."""
        rates = self.options.candidate_rates(budget)
        best = fit_singles(self.net, train, validation, rates=rates, options=self.options, seed=seed)
        predictor = NetPredictor(best.nets, train.tasks, self.net, train.X.shape[1:])
        chosen = {"learning_rate": best.rates}
        return RecipeFit(predictor, chosen, best.validation_loss, best.steps, best.total_steps, [best.curve])


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
    """

    net: NetFactory = field(default_factory=MLP)
    options: FitOptions = field(default_factory=FitOptions)
    title: str = ""
    dominance_every: int = field(default=0, kw_only=True)

    name: ClassVar[str] = "joint"
    summary: ClassVar[str] = "one net with a head per task, trained on the plain sum of the losses"
    paper: ClassVar[str] = "Caruana, Multitask Learning, 1997"
    family: ClassVar[Family] = "deep"

    def fit(self, train: TaskData, validation: TaskData, *, seed: int, budget: int = 4) -> RecipeFit:
        """Train one net at each of `budget` learning rates and keep the best; `dominance` is that of the kept one."""
        rates = self.options.candidate_rates(budget)
        watches = [DominanceWatch([task.name for task in train.tasks], self.dominance_every) for _ in rates]
        fits = [self._fit_one(train, validation, seed, *how) for how in zip(rates, watches, strict=True)]
        alive = [i for i, one in enumerate(fits) if not one.failed]
        if not alive:
            raise FitError(f"every learning rate of {rates} diverged; try smaller ones")
        chosen = min(alive, key=lambda i: fits[i].validation_loss.mean())
        best = fits[chosen]
        return RecipeFit(
            predictor=NetPredictor([best.net], train.tasks, self.net, train.X.shape[1:]),
            chosen={"learning_rate": rates[chosen]},
            validation_loss=best.validation_loss,
            steps=best.steps,
            total_steps=sum(one.steps for one in fits),
            curves=[best.curve],
            dominance=watches[chosen].found(),
        )

    def baseline(self) -> SingleRecipe:
        """Nets of the same make for each task alone."""
        return SingleRecipe(self.net, self.options)

    def update(self) -> UpdateFactory:
        """What moves the weights in each step; recipes of one net differ in it."""
        return SumStep

    def _fit_one(self, train: TaskData, validation: TaskData, seed: int, rate: float, watch: DominanceWatch) -> NetFit:
        net = new_net(self.net, train.X.shape[1:], train.tasks, seed)
        options = replace(self.options, learning_rate=rate)
        return fit(net, train, validation, options=options, seed=seed, update=watch.over(self.update(), net))
