"""Trained nets as a saved and loaded predictor.

Letters: K tasks, n rows, D = sum of the tasks' outputs, C classes of one task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from taskloom.deep._losses import OutputColumns
from taskloom.deep._nets import MLP, NetFactory
from taskloom.tasks import Array, ModelFileError, Predictor, Task, register_predictor

_ROWS_AT_ONCE = 1 << 14


@register_predictor
class NetPredictor(Predictor):
    """One net for all tasks, one for each, or one for each of some groups of tasks.

    Args:
        nets: one net with the outputs of all tasks, K nets with the outputs of one task each, or one net for each group.
        tasks: the K tasks.
        make_net: the factory that made the nets; a saved model rebuilds them with it.
        shape: of a row.
        groups: for each net the numbers of its tasks, in the order of its outputs; not needed for one net or K.
        serves: for each task the number of the net that predicts it; needed with `groups`, which may overlap.
    """

    format: ClassVar[str] = "net"

    def __init__(
        self,
        nets: Sequence[nn.Module],
        tasks: Sequence[Task],
        make_net: NetFactory,
        shape: tuple[int, ...],
        groups: Sequence[Sequence[int]] | None = None,
        serves: Sequence[int] | None = None,
    ) -> None:
        self.nets, self.tasks, self.make_net, self.shape = list(nets), list(tasks), make_net, tuple(shape)
        self.is_joint = len(nets) == 1
        everyone = list(range(len(self.tasks)))
        if groups is None or serves is None:
            groups, serves = ([everyone], [0] * len(everyone)) if self.is_joint else ([[t] for t in everyone], everyone)
        self.groups, self.serves = [list(group) for group in groups], list(serves)
        columns = [OutputColumns([self.tasks[t] for t in group]).slices for group in self.groups]
        self._slices = [columns[g][self.groups[g].index(t)] for t, g in enumerate(self.serves)]

    def predict(self, X: Array, tasks: Sequence[int]) -> list[Array]:
        """Values for regression, probabilities for classification: see `Predictor.predict`."""
        x = torch.as_tensor(X, dtype=next(self.nets[0].parameters()).dtype)
        # Each net is passed once, however many of its tasks are asked for.
        outputs = {g: _forward(self.nets[g], x) for g in dict.fromkeys(self.serves[t] for t in tasks)}
        return [_link(outputs[self.serves[t]][:, self._slices[t]], self.tasks[t].kind) for t in tasks]

    def state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """The nets' weights, and the settings of the factory where it is taskloom's own."""
        # NumPy has no bfloat16; every such number is a float32 as well.
        states = [{k: v.float() if v.dtype == torch.bfloat16 else v for k, v in net.state_dict().items()} for net in self.nets]
        arrays = {f"{i}/{name}": value.numpy() for i, state in enumerate(states) for name, value in state.items()}
        dtype = str(next(self.nets[0].parameters()).dtype).removeprefix("torch.")
        own = (
            {"hidden": list(self.make_net.hidden), "dropout": self.make_net.dropout} if isinstance(self.make_net, MLP) else None
        )
        return arrays, {
            "mlp": own,
            "shape": list(self.shape),
            "joint": self.is_joint,
            "dtype": dtype,
            "groups": self.groups,
            "serves": self.serves,
        }

    @classmethod
    def from_state(cls, arrays: dict[str, Array], settings: dict[str, Any], tasks: Sequence[Task]) -> Self:
        """The predictor whose `state` this is.

        Raises:
            ModelFileError: the nets were made by a factory of the user's: `from_factory` takes it.
        """
        if settings["mlp"] is None:
            raise ModelFileError("the model holds a net of your own; give `load_model` the factory that made it: `net=`")
        own = settings["mlp"]
        return cls.from_factory(arrays, settings, tasks, MLP(tuple(own["hidden"]), own["dropout"]))

    @classmethod
    def from_factory(
        cls, arrays: dict[str, Array], settings: dict[str, Any], tasks: Sequence[Task], make_net: NetFactory
    ) -> Self:
        """As `from_state`, with nets made by the given factory."""
        shape, everyone = tuple(settings["shape"]), list(range(len(tasks)))
        # Models that were saved before there were groups have one net, or one for each task.
        groups = settings.get("groups") or ([everyone] if settings["joint"] else [[t] for t in everyone])
        nets = []
        for i, group in enumerate(groups):
            net = make_net(shape, [tasks[t] for t in group])
            own = {name: torch.from_numpy(arrays[f"{i}/{name}"].copy()) for name in net.state_dict()}
            net.to(getattr(torch, settings["dtype"])).load_state_dict(own)
            nets.append(net.eval())
        return cls(nets, tasks, make_net, shape, settings.get("groups"), settings.get("serves"))


def _forward(net: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([net(part) for part in x.split(_ROWS_AT_ONCE)]).double()


def _link(outputs: Tensor, kind: str) -> Array:
    if kind == "multiclass":
        return outputs.softmax(dim=1).numpy()
    return (outputs[:, 0] if kind == "regression" else outputs[:, 0].sigmoid()).numpy()
