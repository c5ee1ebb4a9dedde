"""Which weights belong to one task alone, and how they are kept still while other tasks are updated.

Letters: K tasks, P parameters.

An optimizer with momentum or weight decay moves a weight whose gradient is zero. Heads of tasks that are not in an update must
not move: their gradient is taken away, by which every torch optimizer leaves them alone. Where tasks have rows of one
parameter (one linear layer for all outputs), it moves and what is not active is put back after the step, its optimizer's
state with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from taskloom.deep._graph import gradients_of
from taskloom.deep._group_parallel import greatest

T = TypeVar("T")
Key = TypeVar("Key")
_NOBODY, _SHARED = -1, -2
# Sets of tasks that something is kept for; random groups and absent tasks make new ones for ever.
_KEPT = 256


def remembered(kept: dict[Key, T], key: Key, make: Callable[[], T]) -> T:
    """What is kept under a key, made where it is not; the oldest of many goes.

    Examples:
        >>> kept = {"a": 1}
        >>> remembered(kept, "a", lambda: 2), remembered(kept, "b", lambda: 2)
        (1, 2)
    """
    if key not in kept:
        if len(kept) >= _KEPT:
            del kept[next(iter(kept))]
        kept[key] = make()
    return kept[key]


def is_moving(grad: Tensor) -> Tensor:
    """Whether a gradient, sparse or not, has a number that is not zero.

    Examples:
        >>> bool(is_moving(torch.zeros(2)))
        False
    """
    return ((grad.coalesce().values() if grad.is_sparse else grad) != 0).any()


def _dense(grad: Tensor) -> Tensor:
    return grad.to_dense() if grad.is_sparse else grad


class TaskHeads:
    """The heads of K tasks among the parameters of an optimizer, found by gradients.

    A parameter of which some number is moved by two tasks is shared. Of the others, one that a single task moves is that task's
    head. One that several tasks move, each other numbers of it, is split between them, by rows if every row has one owner.
    Gradients of a task are looked at where it is seen for the first time, in a pass of its own back through the graph. While
    some task has not been seen, rows of a head that nobody has moved may be that task's, and wait for it.

    Args:
        parameters: P of them; those that are frozen are left alone until they are not.
        n_tasks: K.
        group: of processes that must agree.

    Examples:
        >>> trunk, left, right = (torch.ones(2, requires_grad=True) for _ in range(3))
        >>> heads = TaskHeads([trunk, left, right], 2)
        >>> heads.look([(trunk * left).sum(), (trunk * right).sum()], [0, 1])
        >>> heads.owners
        [-2, 0, 1]
    """

    def __init__(self, parameters: Sequence[Tensor], n_tasks: int, group: Any = None) -> None:
        self.parameters, self.n_tasks, self.group = list(parameters), n_tasks, group
        self.seen: list[int] = []
        # Who moves each number of a parameter; None for nobody, or where it is known to be shared.
        self._movers: list[Tensor | None] = [None] * len(self.parameters)
        self.owners: list[int] = [_NOBODY] * len(self.parameters)
        # Owners of the numbers of a parameter, or of its rows where no row has two.
        self.split: dict[int, Tensor] = {}
        self._masks: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        # By group: parameters of other tasks, and those of nobody that is known.
        self._outside: dict[tuple[int, ...], tuple[list[Tensor], list[Tensor]]] = {}

    def follow(self, parameters: Sequence[Tensor]) -> None:
        """Look again at every task that comes: parameters were thawed, or there are more of them than before."""
        new = parameters[len(self.parameters) :]
        self.parameters.extend(new)
        self.owners.extend([_NOBODY] * len(new))
        self._movers.extend([None] * len(new))
        self.seen.clear()
        self._outside.clear()

    def unseen(self, present: Sequence[int]) -> list[int]:
        """Tasks of those that have not been looked at yet."""
        return [k for k in present if k not in self.seen]

    def look(self, losses: Sequence[Tensor], tasks: Sequence[int]) -> None:
        """Find what the losses of some tasks move.

        Args:
            losses: K of them, with their graph, which is kept.
            tasks: to look at.
        """
        for k in tasks:
            if losses[k].requires_grad and not bool(losses[k].detach().isnan()):
                self._note(k, dict(enumerate(gradients_of(losses[k], self.parameters))))
            self.seen.append(k)
        self._settle()

    def look_again(self, group: Sequence[int]) -> None:
        """See whether the tasks of a group move what was not known to be theirs; after their backward pass.

        Weights of zero in one place make gradients of zero in another, so that a first look may miss some.
        """
        doubtful = [
            p
            for p, (owner, weight) in enumerate(zip(self.owners, self.parameters, strict=True))
            if owner != _SHARED and owner not in group and p not in self.split and weight.grad is not None
        ]
        if not doubtful and self.group is None:
            return
        flags = torch.zeros(len(self.parameters), device=self.parameters[0].device)
        for p in doubtful:
            grad = self.parameters[p].grad
            flags[p] = 0.0 if grad is None else is_moving(grad)
        for p in greatest(flags, self.group).nonzero().squeeze(1).tolist():
            self._outside.clear()
            grad = self.parameters[p].grad
            if self.owners[p] == _NOBODY and len(group) == 1:
                self.owners[p] = group[0]
                if grad is not None:
                    self._note(group[0], {p: grad})
            else:
                self.owners[p], self._movers[p] = _SHARED, None

    def _note(self, k: int, grads: Mapping[int, Tensor | None]) -> None:
        for p, grad in grads.items():
            if self.owners[p] == _SHARED or grad is None:
                continue
            is_moved, movers = _dense(grad) != 0, self._movers_of(p)
            if bool((is_moved & (movers != _NOBODY) & (movers != k)).any()):
                self.owners[p], self._movers[p] = _SHARED, None
            else:
                movers[is_moved] = k
                self._movers[p] = movers

    def _movers_of(self, p: int) -> Tensor:
        movers, weight = self._movers[p], self.parameters[p]
        return torch.full(weight.shape, _NOBODY, dtype=torch.int16, device=weight.device) if movers is None else movers

    def _settle(self) -> None:
        """Owners out of movers, the same on all processes."""
        if not self.parameters:
            return
        device = self.parameters[0].device
        self._masks.clear()
        self._outside.clear()
        reached = torch.zeros(len(self.parameters), self.n_tasks + 1, device=device)
        for p, movers in enumerate(self._movers):
            if self.owners[p] == _SHARED:
                reached[p, self.n_tasks] = 1
            elif movers is not None:
                reached[p, movers[movers != _NOBODY].unique().long().to(device)] = 1
        # One that a single task moves may be another's too, where that has not been seen.
        least = 2 if len(self.seen) == self.n_tasks else 1
        for p, row in enumerate(greatest(reached, self.group).bool().tolist()):
            tasks = [k for k in range(self.n_tasks) if row[k]]
            self.split.pop(p, None)
            if row[-1] or (len(tasks) >= least and not self._split(p)):
                self.owners[p], self._movers[p] = _SHARED, None
            else:
                self.owners[p] = tasks[0] if len(tasks) == 1 else _NOBODY

    def _split(self, p: int) -> bool:
        """Share out the numbers of a parameter; False if processes find two owners for one."""
        movers = self._movers_of(p)
        low = torch.where(movers == _NOBODY, self.n_tasks, movers).to(torch.int32)
        high, low = greatest(movers.to(torch.int32), self.group), -greatest(-low, self.group)
        if bool(((high != _NOBODY) & (high != low)).any()):
            return False
        rows = high.flatten(1) if high.dim() > 1 else high.reshape(-1, 1)
        top = rows.amax(dim=1, keepdim=True)
        is_even = bool(((rows == top) | (rows == _NOBODY)).all())
        if is_even and bool((top == top[0]).all()):
            # All of it is one task's.
            return True
        # Units that happen to be silent belong to whom the rest of their row belongs to.
        self.split[p] = top.reshape(-1, *[1] * (high.dim() - 1)) if is_even else high
        return True

    def take_gradients(self, group: Sequence[int]) -> None:
        """Take the gradients of heads that no task of the group owns, so that a step leaves them as they are."""
        key = tuple(group)

        def outside() -> tuple[list[Tensor], list[Tensor]]:
            heads = [p for p, owner in enumerate(self.owners) if owner != _SHARED and owner not in key and p not in self.split]
            return (
                [self.parameters[p] for p in heads if self.owners[p] != _NOBODY],
                [self.parameters[p] for p in heads if self.owners[p] == _NOBODY],
            )

        others, unknown = remembered(self._outside, key, outside)
        for weight in others:
            weight.grad = None
        for weight in unknown:
            # The head of a task without labels so far, or something that has not begun to move.
            if weight.grad is not None and not bool(is_moving(weight.grad)):
                weight.grad = None

    def guarded(self, optimizer: Optimizer, group: Sequence[int], step: Callable[[], T]) -> T:
        """Run a step of the optimizer, and put back what is not the group's in parameters that tasks split.

        That is done in a hook which comes before all others: averages of weights that users keep in one see no head move.
        """
        if not self.split or len(group) == self.n_tasks:
            return step()
        stills = {p: self._still(p, tuple(group)) for p in self.split}
        kept = {name: value.clone() for name, value in self._split_tensors(optimizer).items()}

        @torch.no_grad()
        def put_back(*_: Any) -> None:
            for name, value in self._split_tensors(optimizer).items():
                old, still = kept.get(name), stills[name[0]]
                if old is not None:
                    torch.where(still, old, value, out=value)
                else:
                    # State that the step has made anew begins with what is active.
                    value.masked_fill_(still, 0)

        handle = optimizer.register_step_post_hook(put_back)
        cast("Any", optimizer._optimizer_step_post_hooks).move_to_end(handle.id, last=False)
        try:
            return step()
        finally:
            handle.remove()

    def _still(self, p: int, group: tuple[int, ...]) -> Tensor:
        """Where a number of a split parameter is another task's, or nobody's, and has no gradient."""
        mask = remembered(self._masks, (p, group), lambda: torch.stack([self.split[p] != k for k in group]).all(dim=0))
        grad = self.parameters[p].grad
        # What the group does move was never one task's alone, such as a row of an embedding.
        return mask if grad is None else mask & (_dense(grad) == 0)

    def _split_tensors(self, optimizer: Optimizer) -> dict[tuple[int, str], Tensor]:
        """Split parameters, and the state of the same shape that an optimizer has of them."""
        found: dict[tuple[int, str], Tensor] = {}
        for p in self.split:
            weight = self.parameters[p]
            found[p, ""] = weight.detach()
            for name, value in optimizer.state.get(weight, {}).items():
                if isinstance(value, Tensor) and value.shape == weight.shape and weight.dim() > 0:
                    found[p, name] = value
        return found

    def state_dict(self) -> dict[str, Any]:
        """Who owns what."""
        return {
            "seen": list(self.seen),
            "owners": list(self.owners),
            "split": {str(p): owners.clone() for p, owners in self.split.items()},
            "movers": {str(p): movers.clone() for p, movers in enumerate(self._movers) if movers is not None},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        devices = [weight.device for weight in self.parameters]
        self.seen, self.owners = list(state["seen"]), list(state["owners"])
        self._masks.clear()
        self._outside.clear()
        self.split = {int(p): owners.to(devices[int(p)]).clone() for p, owners in state["split"].items()}
        movers = {int(p): each.to(devices[int(p)]).clone() for p, each in state["movers"].items()}
        self._movers = [movers.get(p) for p in range(len(devices))]
