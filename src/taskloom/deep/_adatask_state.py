"""What an AdaTask optimizer keeps: gradients of each task until the step, moments of each task for good.

Letters: K tasks, n parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from taskloom.deep._adatask_kernels import Group, Kernel, Lane, Rate
from taskloom.deep._adatask_settings import Settings, Weights, check_group, task_names, weights_of
from taskloom.deep._aggregators import memory_of, set_memory
from taskloom.tasks import DataError, OptionError, unknown

Slots = list[Tensor | None]
HALVES = (torch.float16, torch.bfloat16)


class TaskOptimizer(Optimizer):
    """Moments of each task, and the gradients that wait for a step.

    Args:
        params: parameters or groups of them; groups with `"shared": False` take the stock update from their `.grad`.
        tasks: their number or their names.
        defaults: of the groups.
        settings: how directions are joined.
    """

    kernel: ClassVar[Kernel]
    moment_names: ClassVar[tuple[str, ...]]
    fused_devices: ClassVar[tuple[str, ...]] = ()
    # Weight decay beside the gradient, once a step, in place of a part of the gradient.
    decouples_decay: ClassVar[bool] = False
    # One momentum for all tasks, and second moments of which matrices keep row and column means.
    has_own_momentum: ClassVar[bool] = False

    def __init__(self, params: Any, tasks: int | Sequence[str], defaults: Group, settings: Settings) -> None:
        self.tasks = task_names(tasks)
        self.settings = settings
        self._weights = weights_of(settings.task_weights, self.tasks)
        self._begin()
        super().__init__(params, {**defaults, "shared": True})

    def _begin(self) -> None:
        """All that no state dict and no copy carries."""
        # By task, one place for each shared parameter in the order of the groups.
        self._waiting: dict[str, Slots] = {}
        # Sums of normalised directions of tasks that were streamed; by task only where an aggregator needs them apart.
        self._directions: dict[str, Slots] = {}
        self._streamed: dict[str, set[int]] = {}
        self._lane_cache: dict[tuple[int, str | None], dict[tuple[int, ...], list[Lane]]] = {}
        self._hooked: set[int] = self.__dict__.get("_hooked", set())
        # Tasks with an infinite loss, and with one of NaN, since the last step.
        self._infinite: set[str] = set()
        self._absent: set[str] = set()
        # Tasks whose absence was seen to leave the gradients of the others finite.
        self._harmless: set[str] = set()
        self._collector: Any = None
        self._unscaled: Any = None
        self._view: Any = None
        self._is_synchronized = False

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle carries: waiting gradients stay behind."""
        own = {"tasks": self.tasks, "settings": self.settings, "_weights": self._weights}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Go on from a copy, a pickle or a state dict."""
        super().__setstate__(state)
        self._begin()
        self._measure_groups()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; `"shared": False` marks parameters that no two tasks share.

        Raises:
            OptionError: a value that no update can be made of.
        """
        super().add_param_group(param_group)
        try:
            check_group(self.param_groups[-1])
            for weight in self.param_groups[-1]["params"]:
                self._kernel_on(weight)
        except OptionError:
            self.param_groups.pop()
            raise
        self._measure_groups()

    def _measure_groups(self) -> None:
        self._marks = [group["shared"] for group in self.param_groups]
        self._shared = [weight for group in self.param_groups if group["shared"] for weight in group["params"]]
        sizes = [len(group["params"]) if group["shared"] else 0 for group in self.param_groups]
        ends = list(accumulate(sizes))
        self._spans = [(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        for slots in (*self._waiting.values(), *self._directions.values()):
            slots.extend([None] * (len(self._shared) - len(slots)))

    def _regroup(self, members: Sequence[list[Tensor]], news: Mapping[Tensor, Tensor]) -> None:
        """Deal the parameters out to the groups anew, between steps.

        Args:
            members: of each group.
            news: for each parameter that was not shared so far, which tasks (n, *shape) have moved it: these take over the
                stock moments of what they moved, and the stock clock.
        """
        for group, weights in zip(self.param_groups, members, strict=True):
            group["params"] = weights
        for weight, moved in news.items():
            stock = self.state.pop(weight, {})
            dtype = torch.float32 if weight.dtype in HALVES else weight.dtype
            for k, name in enumerate(self.tasks):
                if stock and bool(moved[k].any()):
                    taken = {f"{one}_{name}": (stock[one] * moved[k]).to(dtype) for one in self.moment_names}
                    self.state[weight].update({**taken, f"step_{name}": stock["step"].clone()})
        self._lane_cache.clear()
        self._measure_groups()

    def _refuse_open(self, what: str) -> None:
        if self._collector is not None:
            raise OptionError(f"`{what}` inside `task`={self._collector.name!r}: leave that one first")

    @property
    def task_weights(self) -> list[float]:
        """(K,) factors of the normalised directions; may be set, by a sequence or a mapping, at any time before a step."""
        return list(self._weights)

    @task_weights.setter
    def task_weights(self, weights: Weights | None) -> None:
        self._weights = weights_of(weights, self.tasks)

    def add_task(self, name: str, weight: float = 1.0) -> None:
        """Take on a task more; its moments begin at its first gradient.

        Args:
            name: of the new task.
            weight: of its normalised direction.

        Raises:
            OptionError: there is such a task, or the weight is no number that is at least 0.
        """
        names = task_names([*self.tasks, name])
        self._weights = weights_of([*self._weights, weight], names)
        self.tasks = names

    def remove_task(self, name: str | int) -> None:
        """Give up a task, its moments and its waiting gradients.

        Args:
            name: of the task, or its number.

        Raises:
            UnknownNameError: there is no such task.
            OptionError: it is the last one; a task is open; or it was streamed, or had an infinite loss, since the last step.
        """
        self._refuse_open("remove_task")
        name = self._name(name)
        if len(self.tasks) == 1:
            raise OptionError(f"`name`={name!r} is the last task; an optimizer without tasks has nothing to do")
        if name in self._streamed or name in self._infinite:
            raise OptionError(
                f"`name`={name!r} was streamed or has an infinite loss, which is in the coming step already: `zero_grad` first"
            )
        k = self.tasks.index(name)
        self.tasks, self._weights = [[*kept[:k], *kept[k + 1 :]] for kept in (self.tasks, self._weights)]
        self._waiting.pop(name, None)
        for names in (self._absent, self._harmless):
            names.discard(name)
        for weight in self._shared:
            for key in [key for key in self.state.get(weight, {}) if self._is_of(key, name)]:
                del self.state[weight][key]
        self._lane_cache.clear()

    def _is_of(self, key: str, task: str) -> bool:
        return any(key == f"{moment}_{task}" for moment in (*self.moment_names, "step"))

    def _name(self, task: str | int) -> str:
        """The name of a task that is given by name or by number."""
        if isinstance(task, int) and not isinstance(task, bool) and 0 <= task < len(self.tasks):
            return self.tasks[task]
        if task not in self.tasks:
            raise unknown("task", str(task), self.tasks)
        return str(task)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients: those of heads and those of tasks that wait for a step.

        What was streamed is in the moments already; its part of the coming step is dropped.

        Args:
            set_to_none: False fills the gradients of groups that are not shared with zeros.

        Raises:
            OptionError: a task is open.
        """
        self._refuse_open("zero_grad")
        super().zero_grad(set_to_none)
        for weight in self._shared:
            weight.grad = None
            if hasattr(weight, "jac"):
                del weight.jac
        self._forget()

    def _forget(self) -> None:
        self._waiting.clear()
        self._directions.clear()
        self._streamed.clear()
        self._infinite.clear()
        self._absent.clear()
        self._unscaled, self._is_synchronized = None, False

    def task_gradients(self, task: str | int) -> list[Tensor | None]:
        """The gradients of a task that wait for a step, in the order of the shared parameters; None where there is none."""
        return list(self._waiting.get(self._name(task), [None] * len(self._shared)))

    def state_dict(self) -> dict[str, Any]:
        """Moments, groups, tasks, their weights, and what the aggregator remembers, if it is a module."""
        own = {"tasks": list(self.tasks), "task_weights": list(self._weights), "moments": list(self.moment_names)}
        state = {**super().state_dict(), **own}
        aggregator = self.settings.aggregator
        return {**state, "aggregator": memory_of(aggregator)} if isinstance(aggregator, torch.nn.Module) else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`, to the bit.

        Torch would cast each moment to its parameter's type; here every tensor keeps the type that it was saved with.

        Args:
            state_dict: of an optimizer of the same class, tasks and parameters.

        Raises:
            DataError: it is of other tasks, of an optimizer with other moments or options, or of an aggregator of other parts;
                nothing is changed.
            OptionError: a task is open.
            ValueError: it is of other groups (raised by torch).
        """
        self._refuse_open("load_state_dict")
        received: dict[str, Any] = {}
        # Registered last, so that it sees what other hooks made of the dict.
        handle = self.register_load_state_dict_pre_hook(lambda _, state: received.update(state))
        try:
            self._check_state(state_dict)
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        if "task_weights" in received:
            self.task_weights = received["task_weights"]
        if "aggregator" in received and isinstance(self.settings.aggregator, torch.nn.Module):
            set_memory(self.settings.aggregator, received["aggregator"])
        ids = [one for group in received["param_groups"] for one in group["params"]]
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for one, weight in zip(ids, weights, strict=True):
            for key, value in received["state"].get(one, {}).items():
                if isinstance(value, Tensor):
                    device = "cpu" if key.startswith("step") and self._kernel_on(weight) != "fused" else weight.device
                    self.state[weight][key] = value.detach().to(device, copy=True)

    def _check_state(self, state_dict: dict[str, Any]) -> None:
        """Refuse the state of another kind of optimizer, of other tasks, or of an aggregator that is not the one here."""
        moments, needed = state_dict.get("moments"), [*self.moment_names]
        if moments != needed or any(set(self.defaults) - set(group) for group in state_dict["param_groups"]):
            raise DataError(
                f"`state_dict` is of an optimizer with {'no moments of tasks' if moments is None else f'moments {moments}'}, "
                f"{type(self).__name__} has {needed}; load it into one of the class that it was saved from"
            )
        if list(state_dict["tasks"]) != self.tasks:
            raise DataError(
                f"`state_dict` is of tasks {list(state_dict['tasks'])}, this optimizer of {self.tasks}; "
                "make them agree with `add_task` and `remove_task`"
            )
        own = self.settings.aggregator
        here = sorted(memory_of(own)) if isinstance(own, torch.nn.Module) else []
        saved = sorted(state_dict.get("aggregator", {}))
        if saved and saved != here:
            raise DataError(
                f"`state_dict` has what an aggregator of parts {saved} remembers, the `aggregator` here has {here}; "
                "make the optimizer with the one that it was saved with"
            )

    def _kernel_on(self, weight: Tensor) -> str:
        kernel = self.settings.kernel
        if kernel == "auto":
            return "fused" if weight.device.type in self.fused_devices else "foreach"
        if kernel == "fused" and weight.device.type not in self.fused_devices:
            raise OptionError(
                f"`kernel`='fused': there is none for {type(self).__name__} on `{weight.device.type}`; take 'auto' or 'foreach'"
            )
        return kernel

    def _lanes(self, g: int, task: str | None, places: Iterable[int]) -> list[Lane]:
        """Lanes of the chosen parameters of group g with the moments of a task (None: the stock ones)."""
        wanted = tuple(places)
        cached = self._lane_cache.setdefault((g, task), {})
        if wanted not in cached:
            # A lane owns its clocks: whatever overlaps with a new one must be made anew as well.
            for old in [old for old in cached if not set(old).isdisjoint(wanted)]:
                del cached[old]
            cached[wanted] = self._make_lanes(g, task, wanted)
        return cached[wanted]

    def _make_lanes(self, g: int, task: str | None, places: tuple[int, ...]) -> list[Lane]:
        params = self.param_groups[g]["params"]
        kinds: dict[Any, list[int]] = {}
        for i in places:
            kinds.setdefault((params[i].device, params[i].dtype, self._names_of(params[i], task)), []).append(i)
        suffix = "" if task is None else f"_{task}"
        lanes = []
        for (_, _, names), chosen in kinds.items():
            weights = [params[i] for i in chosen]
            for weight in weights:
                self._begin_state(weight, names, suffix, is_stock=task is None)
            moments = [[self.state[weight][name + suffix] for weight in weights] for name in names]
            steps, clocks = self._own_clocks(weights, f"step{suffix}")
            lanes.append(Lane(tuple(chosen), weights, moments, steps, clocks))
        return lanes

    def _names_of(self, weight: Tensor, task: str | None) -> tuple[str, ...]:
        if not self.has_own_momentum:
            return self.moment_names
        if task is None:
            return ("exp_avg", "exp_avg_sq")
        is_matrix = weight.ndim > 1 and weight.numel() and 1 < len(weight) < weight.numel()
        return ("row", "col") if is_matrix else ("exp_avg_sq",)

    def _begin_state(self, weight: Tensor, names: Sequence[str], suffix: str, *, is_stock: bool) -> None:
        state = self.state[weight]
        for name in names:
            if name + suffix not in state:
                # Half-precision averages stop moving: 0.999 of a number in bfloat16 is rounded back to that number.
                dtype = torch.float32 if weight.dtype in HALVES and not is_stock else weight.dtype
                state[name + suffix] = self._new_moment(weight, name, dtype)
        if f"step{suffix}" not in state:
            device = weight.device if self._kernel_on(weight) == "fused" else "cpu"
            state[f"step{suffix}"] = torch.zeros((), dtype=torch.float32, device=device)

    def _new_moment(self, weight: Tensor, name: str, dtype: torch.dtype) -> Tensor:
        if name in {"row", "col"}:
            return weight.new_zeros(len(weight) if name == "row" else weight.numel() // len(weight), dtype=dtype)
        return torch.zeros_like(weight, dtype=dtype, memory_format=torch.preserve_format)

    def _own_clocks(self, weights: list[Tensor], key: str) -> tuple[list[Tensor], list[Tensor]]:
        """Clocks that these parameters share with no others; parameters of one age share one if the kernel is fused."""
        if self._kernel_on(weights[0]) != "fused":
            clocks = [self.state[weight][key].clone() for weight in weights]
            ages: list[Any] = list(range(len(weights)))
        else:
            ages = torch.stack([self.state[weight][key] for weight in weights]).tolist()
            firsts = dict(zip(reversed(ages), reversed(weights), strict=True))
            distinct = {age: self.state[weight][key].clone() for age, weight in firsts.items()}
            clocks = [distinct[age] for age in ages]
        for weight, clock in zip(weights, clocks, strict=True):
            self.state[weight][key] = clock
        return clocks, list(dict(zip(ages, clocks, strict=True)).values())

    def _observe(self, task: str, g: int, places: Sequence[int], grads: Sequence[Tensor]) -> None:
        """Move a task's moments by gradients of some parameters of group g, and add its normalised direction to the rest.

        The parameters themselves stay as they are: a graph that is walked again needs them.
        """
        group, first = self.param_groups[g], self._spans[g][0]
        directions = self._directions.setdefault(
            task if self.settings.aggregator is not None else "", [None] * len(self._shared)
        )
        weight_decay = 0.0 if self.decouples_decay else float(group["weight_decay"]) / len(self.tasks)
        found = dict(zip(places, grads, strict=True))
        for lane in self._lanes(g, task, places):
            chosen = [found[i] for i in lane.places]
            for i, weight in zip(lane.places, lane.params, strict=True):
                if directions[first + i] is None:
                    dtype = torch.float32 if weight.dtype in HALVES else weight.dtype
                    directions[first + i] = torch.zeros_like(weight, dtype=dtype, memory_format=torch.preserve_format)
            targets = [direction for i in lane.places if (direction := directions[first + i]) is not None]
            if lane.params[0].dtype in HALVES:
                chosen = [one.float() for one in chosen]
            if weight_decay:
                chosen = list(torch._foreach_add(chosen, [one.to(chosen[0].dtype) for one in lane.params], alpha=weight_decay))
            rate = Rate(-self._weights[self.tasks.index(task)], 0.0, self._kernel_on(lane.params[0]))
            self.kernel(lane, targets, chosen, group, rate)
