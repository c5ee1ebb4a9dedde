"""Which parameters several tasks share, found by the gradients of each task apart.

Letters: K tasks, k of them in a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

CLOSE_LOOKS = 10


def is_shared(jac: Tensor) -> bool:
    """Whether some number of a parameter is moved by two tasks or more; where there is one task alone, whether it is moved.

    Args:
        jac: (k, *shape) gradients of k tasks.

    Examples:
        >>> is_shared(torch.tensor([[1.0, 0.0], [0.0, 1.0]])), is_shared(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        (False, True)
    """
    return bool(((jac != 0).sum(dim=0) >= min(2, len(jac))).any())


class SharedWeights:
    """The parameters of which some number is moved by two tasks or more, in one batch or in several.

    A gradient of zero tells nothing: behind a head whose weights begin at zero, or a branch that is scaled by zero, all are
    zero at first. So no look is the last one: the first ten batches are looked at, and from then on those whose number is a
    power of two. A task that is seen for the first time, a parameter that is thawed and one found to be shared begin the count
    anew. What is shared stays so.

    Args:
        parameters: to tell apart.

    Attributes:
        shared: whether each of them is known to be shared.

    Examples:
        >>> trunk, head = torch.ones(2, requires_grad=True), torch.zeros(2, requires_grad=True)
        >>> found = SharedWeights([trunk, head])
        >>> for ahead in (0.0, 3.0):
        ...     rows = [[ahead * trunk, torch.tensor([1.0, 0.0])], [ahead * trunk, torch.tensor([0.0, 1.0])]]
        ...     _ = found.look(rows, [0, 1], 2)
        ...     print(found.shared)
        [False, False]
        [True, False]
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self.shared = [False] * len(self.parameters)
        # By number of the parameter, as long as it is not shared: which tasks (K, *shape) have moved each of its numbers.
        self._moved: dict[int, Tensor] = {}
        self._seen: set[int] = set()
        self._trained: list[bool] = []
        self._age = 0

    def is_due(self, present: Sequence[int]) -> bool:
        """Count a batch; whether it is to be looked at. Without a wait for the device.

        Args:
            present: numbers of the k tasks in it.
        """
        trained = [weight.requires_grad for weight in self.parameters]
        if trained != self._trained or not self._seen.issuperset(present):
            self._seen.update(present)
            self._trained, self._age = trained, 0
        self._age += 1
        return self._age <= CLOSE_LOOKS or self._age & (self._age - 1) == 0

    def look(self, rows: Iterable[Sequence[Tensor | None]], present: Sequence[int], n_tasks: int) -> dict[int, Tensor]:
        """Note what the tasks of a batch move.

        Args:
            rows: for each of the k tasks its gradients, one a parameter; None where a loss does not reach one.
            present: numbers of the k tasks.
            n_tasks: K.

        Returns:
            For each parameter that is now found to be shared, which tasks (K, *shape) had moved it before.
        """
        before = {p: moved.clone() for p, moved in self._moved.items()}
        for k, gradients in zip(present, rows, strict=True):
            for p, gradient in enumerate(gradients):
                if gradient is None or self.shared[p]:
                    continue
                if p not in self._moved:
                    shape = (n_tasks, *self.parameters[p].shape)
                    self._moved[p] = torch.zeros(shape, dtype=torch.bool, device=gradient.device)
                self._moved[p][k] |= (gradient.to_dense() if gradient.is_sparse else gradient) != 0
        found = [p for p, moved in self._moved.items() if bool((moved.sum(dim=0) >= min(2, n_tasks)).any())]
        news = {p: before.get(p, torch.zeros_like(self._moved[p])) for p in found}
        for p in found:
            self.shared[p], self._age = True, 0
            del self._moved[p]
        return news

    def is_settled(self, n_tasks: int) -> bool:
        """Whether something is known to be shared, and no more of it is to be expected.

        What no task has moved is taken for heads where some tasks have not been seen, and for idle after ten looks.

        Args:
            n_tasks: K.
        """
        trained = [p for p, weight in enumerate(self.parameters) if weight.requires_grad and weight.numel()]
        idle = any(not self.shared[p] and not (p in self._moved and bool(self._moved[p].any())) for p in trained)
        return any(self.shared) and (not idle or len(self._seen) < n_tasks or self._age >= CLOSE_LOOKS)

    def state_dict(self) -> dict[str, Any]:
        """What was seen."""
        moved = {str(p): moved.clone() for p, moved in self._moved.items()}
        return {"shared": list(self.shared), "moved": moved, "seen": sorted(self._seen), "age": self._age}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.shared, self._seen, self._age = list(state["shared"]), set(state["seen"]), int(state["age"])
        self._moved = {int(p): moved.to(self.parameters[int(p)].device).clone() for p, moved in state["moved"].items()}
        self._trained = [weight.requires_grad for weight in self.parameters]
