"""Selective task group updates: tasks are grouped while they train, by how they affect each other's losses.

Letters: K tasks, M groups of them.

Jeong & Yoon (ICLR 2025, arXiv 2502.11986): within each batch the groups are updated one after the other, and the losses of the
next group's forward pass, which has to be made anyway, tell what the last update did to every task. How effects are measured is
in `_proximal_affinity`, how groups come of them in `_task_groups`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from taskloom.deep._adatask_step import AdaTaskOptimizer
from taskloom.deep._first_order import LastShared
from taskloom.deep._graph import go_back
from taskloom.deep._group_parallel import from_first, mean_losses
from taskloom.deep._group_passes import GroupPasses, Tasks
from taskloom.deep._group_step import GroupStep
from taskloom.deep._losses import Losses
from taskloom.deep._proximal_affinity import AffinityTracker, Flags, similarity
from taskloom.deep._task_groups import Preference, group_tasks
from taskloom.tasks import Array, OptionError, Rows, is_number, is_whole, unknown

if TYPE_CHECKING:
    from lightning_fabric import Fabric

AFFINITIES = ("proximal", "first_order")
_HISTORY = 200
# What the published code does of what can be chosen.
_OFFICIAL: dict[str, Any] = {
    "preference": "median",
    "single_group": "repeat",
    "measure_every": 1,
    "common_randomness": False,
    "freeze_heads": False,
}


@dataclass(frozen=True)
class SelectiveOptions(GroupPasses):
    """How `SelectiveGroups` measures affinity and makes groups, beside what all steps of groups take.

    Attributes:
        affinity: `proximal` looks at losses before and after updates that are made; `first_order` at products of the tasks'
            gradients by the last layer that they share, scaled as the optimizer scales them. The second costs a backward pass
            through each head in batches that are measured, has no part of momentum, and tells members of a group apart.
        preference: of affinity propagation, in units of a task's own progress: `auto`, `median` (the published choice), or a
            number: tasks join one that is more similar to them than that. See `group_tasks`.
        measure_every: batches from one that is measured to the next; None is every batch, and every 10th for `first_order` and
            for tasks with own rows, where only in these the rows of all tasks go through the net for each group.
        measure_last: share of batches, from 0 to 1, after which a forward pass without gradients measures the last group.
        single_group: with one group no update is followed by another, so that nothing would ever be measured. `probe` updates
            each task on its own in every `probe_every`-th batch, `repeat` updates the group twice in every batch. With one task
            alone there is nothing to measure, and it is updated once.
        probe_every: see `single_group`; `first_order` needs no probes.
        compat: `official` is the behaviour of the published code: a change of the losses is credited to the group after the one
            that caused it; means start at zero and are not corrected; inactive heads are moved by momentum; each pass has its
            own randomness; groups are made in every batch after `warmup` + 1, by the median; one group is repeated.

    Raises:
        OptionError: a value outside of what it may be.
        UnknownNameError: an unknown affinity, preference, treatment of a single group, or compatibility.

    Examples:
        >>> SelectiveOptions(preference=0.0).affinity
        'proximal'
    """

    affinity: Literal["proximal", "first_order"] = "proximal"
    preference: Preference = "auto"
    measure_every: int | None = None
    measure_last: float = 0.0
    single_group: Literal["probe", "repeat"] = "probe"
    probe_every: int = 25
    compat: Literal["official"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("affinity", AFFINITIES), ("single_group", ("probe", "repeat")), ("compat", (None, "official"))):
            if getattr(self, name) not in known:
                raise unknown(name, str(getattr(self, name)), [str(one) for one in known])
        if isinstance(self.preference, str) and self.preference not in {"auto", "median"}:
            raise unknown("preference", self.preference, ("auto", "median"))
        if not isinstance(self.preference, str) and not (is_number(self.preference) and math.isfinite(self.preference)):
            raise OptionError(f"`preference`={self.preference!r}: give a finite number, 'auto' or 'median'")
        for name in ("measure_every", "probe_every"):
            if getattr(self, name) is not None and not is_whole(getattr(self, name), 1):
                raise OptionError(f"`{name}`={getattr(self, name)!r}: give a whole number of batches of at least 1")
        if not is_number(self.measure_last) or not 0 <= self.measure_last <= 1:
            raise OptionError(f"`measure_last`={self.measure_last!r}: give a share of batches from 0 to 1")
        if self.affinity == "first_order" and not self.freeze_heads:
            raise OptionError("`freeze_heads`=False with `affinity`='first_order', which has to know the heads; leave one out")
        if self.compat and self.affinity == "first_order":
            raise OptionError("`compat`='official' with `affinity`='first_order': the published code has none; leave one out")
        self._check_official()

    def _check_official(self) -> None:
        for one in fields(self) if self.compat else ():
            value, theirs = getattr(self, one.name), _OFFICIAL.get(one.name)
            if one.name in _OFFICIAL and value not in {one.default, theirs}:
                raise OptionError(f"`{one.name}`={value!r} with `compat`='official', which has {theirs!r}; leave one out")


class Selection(TypedDict, total=False):
    """Keyword arguments of `SelectiveGroups`.

    Attributes:
        beta: decay of the means of effects; 1 / `beta` observations are remembered.
        warmup: batches at the start in which each task is a group of its own; the first batch is one in any case, as groups are
            made of what was seen.
        regroup_every: batches from one grouping to the next.
        seed: of all that is drawn; that of `options` if not given.
        options: see `SelectiveOptions`.
    """

    beta: float
    warmup: int
    regroup_every: int
    seed: int
    options: SelectiveOptions


@dataclass
class _Measuring:
    """What is measured in the batch at hand."""

    is_on: bool = True
    # Losses (K,) before the update to come.
    values: Array = field(default_factory=lambda: np.empty(0))
    # The tasks that were updated last, with the losses before it.
    previous: tuple[list[int], Array] | None = None


class SelectiveGroups(GroupStep):
    """Tasks grouped while they train by how they affect each other, and updated group by group (Jeong & Yoon, ICLR 2025).

    In each batch the groups are updated one after the other in random order. The losses in the forward pass of a group tell
    what the update before it did to each task, so that measuring costs no pass of its own; the last update of a batch goes
    unmeasured. A decayed mean of these effects is kept, and every `regroup_every` batches groups are made of it by affinity
    propagation.

    With M groups a batch costs M forward and backward passes and M optimizer steps, where the sum of all losses costs one. Hold
    it against steps that cost as much: `RepeatedStep`, `RandomGroups`, `FixedGroups`.

    Read in the paper's abstract and its published code: groups in random order, effects as relative gains of the updates that
    are made, their decayed mean, affinity propagation, a warm-up of single tasks. Deviations: an effect is credited to the
    group that caused it (the published code credits the next one); heads of other tasks do not move; means are corrected for
    their start and count; groups are made now and then and by a rule that minds the sign of effects; a single group is probed,
    not updated twice; all passes of a batch share their randomness. `SelectiveOptions(compat="official")` undoes all of these.

    Any torch optimizer will do, and any training loop:

        groups = SelectiveGroups(optimizer, tasks=["depth", "normal"])
        for x, y in batches:
            groups.step(lambda: losses_of(net(x), y))

    In `fit` it is an update step: `fit(..., update=partial(SelectiveGroups, seed=1))`.

    Args:
        optimizer: of all weights, AdaTask's included.
        fabric: that the net was set up with; None for none.
        tasks: their number or their names; None: as many as the first losses.
        how: `beta` (1e-3), `warmup` (100), `regroup_every` (50), `seed` (0), `options`; see `Selection`.

    Attributes:
        history: batch, groups as numbers of tasks, and affinity (K, K) at each grouping; of more than 200, every second is
            dropped.
        costs: passes and optimizer steps so far; see `StepCosts`.

    Raises:
        OptionError: a value outside of what it may be.

    Examples:
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch...>
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        >>> optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        >>> groups = SelectiveGroups(optimizer, tasks=["a", "b", "c"], warmup=20, regroup_every=20)
        >>> x = torch.randn(32, 3)
        >>> for _ in range(40):
        ...     losses = groups.step(lambda: (net(x) - x.roll(1, dims=1)).square().mean(dim=0))
        >>> sorted(name for group in groups.groups for name in group), groups.affinity.shape
        (['a', 'b', 'c'], (3, 3))
    """

    def __init__(
        self, optimizer: Optimizer, fabric: Fabric | None = None, tasks: Tasks = None, **how: Unpack[Selection]
    ) -> None:
        options, beta = how.get("options", SelectiveOptions()), how.get("beta", 1e-3)
        self.warmup, self.regroup_every = how.get("warmup", 100), how.get("regroup_every", 50)
        _check(how, options, beta, self.warmup, self.regroup_every)
        if "seed" in how:
            options = replace(options, seed=how["seed"])
        self.is_official = options.compat == "official"
        if self.is_official:
            options = replace(options, **_OFFICIAL)
        self.options, self.beta = options, float(beta)
        super().__init__(optimizer, fabric, tasks, options)
        if self.is_official and isinstance(self._inner, AdaTaskOptimizer):
            raise OptionError("`compat`='official' with an AdaTask optimizer: the published code has none; leave `compat` out")
        self._tracker: AffinityTracker | None = None
        self._labels: list[int] = []
        self._now = _Measuring()
        self._layer: LastShared | None = None
        self._stride = 1
        self.history: list[tuple[int, list[list[int]], Array]] = []
        self._n_groupings = 0

    @property
    def groups(self) -> list[set[Any]]:
        """The groups as they are now, sets of names, or of numbers where no names were given."""
        return self._named_sets(self._members())

    @property
    def affinity(self) -> Array:
        """(K, K) mean effect of each task's updates (rows) on each task's loss (columns), as a share of it; NaN: never seen."""
        return np.empty((0, 0)) if self._tracker is None else self._tracker.affinity()

    @property
    def names(self) -> list[Any]:
        """K names in the order of `affinity`, or numbers where no names were given."""
        return list(self._names or range(self.n_tasks or 0))

    @property
    def observations(self) -> Rows:
        """(K, K) how often each effect was seen; with `compat="official"` what was never seen has an affinity of 0."""
        return np.empty((0, 0), dtype=np.int64) if self._tracker is None else self._tracker.counts()

    @property
    def similarity(self) -> Array:
        """(K, K) what groups are made of: effects in units of the target's own progress, the mean of both directions."""
        return similarity(self.affinity, official=self.is_official)

    def _members(self) -> list[list[int]]:
        return [[k for k, label in enumerate(self._labels) if label == g] for g in range(max(self._labels, default=-1) + 1)]

    def _begin_batch(self) -> None:
        if self._tracker is None:
            self._start()
        self._now = _Measuring()
        if self._is_due():
            self._regroup()

    def _start(self) -> None:
        n_tasks = self.n_tasks or 0
        self._tracker = AffinityTracker(n_tasks, self.beta, official=self.is_official)
        self._labels = list(range(n_tasks))

    def _is_due(self) -> bool:
        age = self.costs.batches - max(self.warmup, 1)
        return self.costs.batches > self.warmup if self.is_official else age >= 0 and age % self.regroup_every == 0

    def _regroup(self) -> None:
        tracker = self._tracker
        if tracker is None:
            return
        tracker.settle()
        found = group_tasks(self.similarity, self.options.preference, official=self.is_official)
        labels = torch.tensor(self._labels if found is None else found.tolist())
        device = self._parameters[0].device if self._parameters else labels.device
        self._labels = from_first(labels.to(device), self.group).tolist()
        if self._n_groupings % self._stride == 0:
            self.history.append((self.costs.batches, self._members(), tracker.affinity()))
        self._n_groupings += 1
        if len(self.history) > _HISTORY:
            self.history, self._stride = self.history[::2], 2 * self._stride

    def _plan(self) -> list[list[int]]:
        every = self.options.measure_every or (10 if self.own_rows or self.options.affinity == "first_order" else 1)
        self._now.is_on = self.costs.batches % every == 0
        groups = self._members()
        if len(groups) == 1 < len(self._labels):
            if self.options.single_group == "repeat":
                return groups * 2
            if self.options.affinity == "proximal" and self.costs.batches % self.options.probe_every == 0:
                self._now.is_on = True
                groups = [[k] for k in range(len(self._labels))]
        return self._shuffled(groups)

    def _wants_all(self) -> bool:
        if self.options.affinity == "first_order":
            return self._now.is_on and self._now.previous is None
        return self._now.is_on

    def _saw(self, values: Array, present: list[int]) -> None:
        previous, self._now.previous = self._now.previous, None
        if previous is None or self._tracker is None or not self._now.is_on or self.options.affinity != "proximal":
            return
        members: Flags = np.zeros(len(values), dtype=bool)
        members[present if self.is_official else previous[0]] = True
        self._tracker.observe(members, previous[1], values)

    def _before_update(self, losses: Tensor | list[Tensor | None], values: Array) -> None:
        self._now.values = values
        first_order = self.options.affinity == "first_order"
        if not first_order or not self._now.is_on or self._tracker is None or self.heads is None:
            return
        # The first pass of a batch is looked at, and no other.
        self._now.is_on = False
        if self._layer is None or not self._layer.weight.requires_grad:
            self._layer = LastShared.find(losses, self.heads)
        layer, inner = self._layer, self._inner
        names = (self._names or inner.tasks) if isinstance(inner, AdaTaskOptimizer) else None
        if layer is not None:
            effects = torch.from_numpy(go_back(self.fabric, lambda: layer.effects(losses, values, inner, names)))
            # Each process has seen its own rows.
            effects = mean_losses(effects.to(layer.weight.device), self.group)
            self._tracker.observe_effects(effects.cpu().numpy())

    def _updated(self, members: list[int]) -> None:
        self._now.previous = (members, self._now.values)

    def _end_batch(self, closure: Callable[..., Losses], batch: Any) -> None:
        if self.options.measure_last and self._now.previous is not None and self._drawn()[-1] < self.options.measure_last:
            with torch.no_grad():
                self._forward(closure, batch, None)
            self._saw(batch.values, [])

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on beside the weights and torch's generators, affinity and history included."""
        history = [
            {"batch": batch, "groups": groups, "affinity": torch.from_numpy(affinity.copy())}
            for batch, groups, affinity in self.history
        ]
        return super().state_dict() | {
            "tracker": None if self._tracker is None else self._tracker.state_dict(),
            "labels": list(self._labels),
            "history": history,
            "stride": self._stride,
            "n_groupings": self._n_groupings,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict` of a step that was made with the same arguments."""
        super().load_state_dict(state)
        if state["tracker"] is not None:
            self._start()
            if self._tracker is not None:
                self._tracker.load_state_dict(state["tracker"])
        self._labels, self._stride, self._n_groupings = list(state["labels"]), state["stride"], state["n_groupings"]
        self._layer, self._now = None, _Measuring()
        self.history = [(one["batch"], one["groups"], one["affinity"].cpu().numpy().copy()) for one in state["history"]]


def _check(how: Mapping[str, Any], options: Any, beta: Any, warmup: Any, regroup_every: Any) -> None:
    for name in how:
        if name in {one.name for one in fields(SelectiveOptions)} - {"seed"}:
            raise OptionError(f"`{name}` is one of the options: give `options`=SelectiveOptions({name}=...)")
        if name not in Selection.__annotations__:
            raise unknown("argument of SelectiveGroups", name, Selection.__annotations__)
    if not isinstance(options, SelectiveOptions):
        raise OptionError(f"`options` is a {type(options).__name__}: give SelectiveOptions(...)")
    if not is_number(beta) or not 0 < beta <= 1:
        raise OptionError(f"`beta`={beta!r}: give a decay above 0 and up to 1")
    if not is_whole(warmup, 0):
        raise OptionError(f"`warmup`={warmup!r}: give a whole number of batches that is not negative")
    if not is_whole(regroup_every, 1):
        raise OptionError(f"`regroup_every`={regroup_every!r}: give a whole number of batches of at least 1")
