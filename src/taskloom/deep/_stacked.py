"""Many small nets of one shape trained as one: their weights stacked, their forward passes one batched product or one `vmap`.

Letters: G groups of nets (one a learning rate), K nets in a group, M = G K nets, B rows of each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from taskloom.deep._nets import SharedBottom


class StackedNets(nn.Module):
    """M nets of one architecture side by side.

    Each parameter is held as G stacks of K, so that an optimizer can give each group a learning rate of its own. The nets do
    not touch each other: the gradient of the sum of their losses is each one's own gradient. A
    `SharedBottom` runs its own batched product; any other net goes through `vmap`, or one after another where it holds a layer
    that `vmap` knows no rule for, such as a GRU.

    Args:
        nets: M nets of one architecture, group after group.
        n_groups: G, a divisor of M.

    Examples:
        >>> nets = [nn.Linear(3, 1) for _ in range(4)]
        >>> stacked = StackedNets(nets, n_groups=2)
        >>> stacked(torch.zeros(4, 5, 3)).shape
        torch.Size([4, 5, 1])
    """

    def __init__(self, nets: Sequence[nn.Module], n_groups: int = 1) -> None:
        super().__init__()
        per_group = len(nets) // n_groups
        states = [stack_module_state(list(nets[g * per_group : (g + 1) * per_group])) for g in range(n_groups)]
        self.names = list(states[0][0])
        trained = {name: parameter.requires_grad for name, parameter in nets[0].named_parameters()}
        self.groups = nn.ModuleList(
            nn.ParameterList(nn.Parameter(stack[name].detach().clone(), trained[name]) for name in self.names)
            for stack, _ in states
        )
        self.buffer_names = list(states[0][1])
        for i, name in enumerate(self.buffer_names):
            self.register_buffer(f"buffer{i}", torch.cat([buffers[name] for _, buffers in states]))
        self.chosen: Tensor | None = None
        # Held in a list so that it is no submodule: its weights keep their ties, and are neither trained nor saved.
        self._template = [copy.deepcopy(nets[0])]
        self._runs_batched: bool | None = None

    def narrow(self, chosen: Tensor) -> bool:
        """From now on map rows of the chosen nets alone, in their order: the others have finished training.

        Returns:
            False, and nothing changes, where the nets keep running statistics: those of a copy would be lost.
        """
        if not self.buffer_names:
            self.chosen = chosen.to(next(self.parameters()).device)
        return not self.buffer_names

    def train(self, mode: bool = True) -> StackedNets:
        """As for any module; the template follows."""
        self._template[0].train(mode)
        return super().train(mode)

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """The parameters of each group."""
        return [list(group.parameters()) for group in self.groups]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (M, B, ...) of each net for its own rows (M, B, ...); after `narrow`, of the chosen nets."""
        parameters, buffers = self._state()
        template = self._template[0]
        # A subclass may compute something else.
        if type(template) is SharedBottom:
            return template.forward_stacked(parameters, x)

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], rows: Tensor) -> Tensor:
            return functional_call(template, (parameters, buffers), (rows,))

        side_by_side = vmap(one, randomness="different")
        if self._runs_batched is None:
            self._runs_batched = _runs(side_by_side, parameters, buffers, x)
        if self._runs_batched:
            return side_by_side(parameters, buffers, x)
        own = [[{name: held[m] for name, held in state.items()} for state in (parameters, buffers)] for m in range(len(x))]
        return torch.stack([one(*state, rows) for state, rows in zip(own, x, strict=True)])

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        stacks = [list(group.parameters()) for group in self.groups]
        joined = [of_name[0] if len(of_name) == 1 else torch.cat(of_name) for of_name in zip(*stacks, strict=True)]
        if self.chosen is not None:
            joined = [weights[self.chosen] for weights in joined]
        buffers = {name: self.get_buffer(f"buffer{i}") for i, name in enumerate(self.buffer_names)}
        return dict(zip(self.names, joined, strict=True)), buffers

    def net_state(self, weights: dict[str, Tensor], m: int) -> dict[str, Tensor]:
        """The state dict of net m out of this module's state dict `weights`."""
        per_group = len(next(iter(self.groups[0].parameters())))
        group, place = divmod(m, per_group)
        state = {name: weights[f"groups.{group}.{i}"][place] for i, name in enumerate(self.names)}
        return state | {name: weights[f"buffer{i}"][m] for i, name in enumerate(self.buffer_names)}


def _runs(side_by_side: Callable[..., Tensor], parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> bool:
    """Whether all layers know how to be batched; nothing is moved, the generator neither."""
    kept = {name: buffer.clone() for name, buffer in buffers.items()}
    with torch.no_grad(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        try:
            side_by_side(parameters, kept, x)
        except RuntimeError:
            return False
    return True


def keep_better(best: dict[str, Tensor], current: dict[str, Tensor], improved: Tensor) -> None:
    """Overwrite in `best` what has improved.

    Args:
        best: state dict to be changed in place.
        current: state dict of the same module.
        improved: (1,) for a module that is judged as a whole, (M,) for `StackedNets`.
    """
    chosen = improved.nonzero().squeeze(1)
    if len(chosen) == len(improved):
        for name, kept in best.items():
            kept.copy_(current[name])
        return
    for name, kept in best.items():
        offset = int(name.split(".")[1]) * len(kept) if name.startswith("groups.") else 0
        inside = chosen[(chosen >= offset) & (chosen < offset + len(kept))] - offset
        kept[inside] = current[name][inside]
