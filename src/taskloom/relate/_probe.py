"""Gradients of single rows for many tasks at once, without ever forming one where layers are linear.

Letters: K tasks, n rows, B rows of a part, P compared parameters, C outputs of the widest task, D outputs of the module, M
cotangents (one for each task), h input of a linear layer, delta gradient by its output, F numbers of a stand-in.

The gradient of row x by the weights and the bias of a linear layer is the outer product of delta and (h, 1). All tasks have h
in common at one row, so with stand-ins v = (delta_l * c_l)_l of as many numbers as the layers have outputs

    |g_s - g_t|_1 = |v_s - v_t|_1      with c_l = |h_l|_1 + 1,
    <g_s, g_t>    = <v_s, v_t>         with c_l = (|h_l|_2^2 + 1)^(1/2),

and between two rows <g_s(x), g_t(x')> = sum_l (<h_l, h_l'> + 1) <delta_l, delta_l'>. Layers of other kinds get their gradients
row by row from torch.func, in evaluation mode: with statistics of a batch a row has no gradient of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from taskloom.relate._put_back import put_back
from taskloom.tasks import OptionError

# Maps outputs (B, D) of the module to M cotangents (M, B, D).
Pull = Callable[[Tensor], Tensor]


@dataclass
class LayerPart:
    """A linear layer at some rows.

    Attributes:
        h: (B, in) its input.
        delta: (M, B, out) gradient by its output for each cotangent.
        has_weight: whether its weight is compared.
        has_bias: whether its bias is.
    """

    h: Tensor
    delta: Tensor
    has_weight: bool
    has_bias: bool

    def square(self) -> Tensor:
        """(B,) squared 2-norm of (h, 1), of what is compared of it."""
        return self.h.square().sum(dim=1) * self.has_weight + float(self.has_bias)

    def size(self) -> Tensor:
        """(B,) 1-norm of (h, 1), of what is compared of it."""
        return self.h.abs().sum(dim=1) * self.has_weight + float(self.has_bias)


class Probe:
    """Looks at the gradients of a module row by row.

    Args:
        body: maps rows (B, ...) to outputs (B, D). It is put into evaluation mode and otherwise left alone.
        names: parameters that are compared.
        rows: two rows or more, to try it on.

    Raises:
        OptionError: there is no parameter to compare.

    Attributes:
        is_linear: whether the closed form serves: all that is compared belongs to linear layers, each used once, and on rows
            to try it gives the gradients that autograd gives (it does not where a weight has other uses).
        size: F of stand-ins.

    Examples:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> probe = Probe(net, [name for name, _ in net.named_parameters()], torch.ones(2, 3))
        >>> probe.is_linear, probe.size
        (True, 6)
    """

    def __init__(self, body: nn.Module, names: Sequence[str], rows: Tensor) -> None:
        self.body, self.names = body.eval(), list(names)
        self._fired: list[tuple[str, int]] = []
        if not self.names:
            raise OptionError("`model` has no weights that several tasks use; give a net whose tasks share a trunk")
        modules = {name: layer for name, layer in body.named_modules() if isinstance(layer, nn.Linear)}
        compared = set(self.names)
        self.layers = {
            name: layer
            for name, layer in modules.items()
            if compared & {f"{name}.{part}".lstrip(".") for part, _ in layer.named_parameters()}
        }
        self.has = {
            name: tuple(f"{name}.{part}".lstrip(".") in compared for part in ("weight", "bias")) for name in self.layers
        }
        self.is_linear = sum(map(sum, self.has.values())) == len(compared) and self._closed_form_holds(rows)
        sizes = {name: weight.numel() for name, weight in body.named_parameters()}
        linear = sum(layer.out_features for layer in self.layers.values())
        self.size = linear if self.is_linear else sum(sizes[name] for name in self.names)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.body.parameters()).dtype

    def parts(self, x: Tensor, pull: Pull) -> list[LayerPart]:
        """Inputs and deltas of the compared layers at rows (B, ...); all gradients go back in one pass."""
        outputs, seen = self._forward(x)
        cotangents = pull(outputs.detach())
        found = torch.autograd.grad(
            outputs, [z for _, z in seen.values()], cotangents, is_grads_batched=True, allow_unused=True
        )
        deltas = [
            z.new_zeros(len(cotangents), *z.shape) if d is None else d for d, (_, z) in zip(found, seen.values(), strict=True)
        ]
        return [LayerPart(seen[name][0], delta, *self.has[name]) for name, delta in zip(seen, deltas, strict=True)]

    def gradients(self, x: Tensor, pull: Pull) -> Tensor:
        """The gradients (B, M, P) themselves, as torch.func gives them."""
        weights = {name: weight.detach() for name, weight in self.body.named_parameters()}
        rest = {**dict(self.body.named_buffers()), **{name: weights.pop(name) for name in [*weights] if name not in self.names}}
        with torch.no_grad():
            cotangents = pull(self.body(x)).movedim(0, 1)

        def of_row(row: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
            _, back = vjp(  # ty: ignore[invalid-assignment] (three only with has_aux)
                lambda moved: functional_call(self.body, {**rest, **moved}, (row.unsqueeze(0),))[0], weights
            )
            return vmap(back)(cotangent)[0]

        with put_back(self.body):
            try:
                found = vmap(of_row)(x, cotangents)
            except RuntimeError:
                # Some layers, such as a GRU, know no rule for many rows at once.
                return torch.stack([self._one_by_one(row, each) for row, each in zip(x, cotangents, strict=True)])
        return torch.cat([found[name].flatten(2) for name in self.names], dim=2)

    def _one_by_one(self, row: Tensor, cotangents: Tensor) -> Tensor:
        """(M, P) gradients of one row, each by a pass of its own."""
        found = [self._sum_of_gradients(row.unsqueeze(0), each.unsqueeze(0)) for each in cotangents]
        return torch.stack([torch.cat([gradient.flatten() for gradient in each.values()]) for each in found])

    def stand_ins(self, x: Tensor, pull: Pull, norm: int) -> Tensor:
        """V (B, M, F) with the same distances in the 1-norm (`norm` 1) or inner products (2) as the gradients at each row."""
        if not self.is_linear:
            return self.gradients(x, pull)
        parts = self.parts(x, pull)
        factors = [part.size() if norm == 1 else part.square().sqrt() for part in parts]
        scaled = [part.delta * factor.unsqueeze(1) for part, factor in zip(parts, factors, strict=True)]
        return torch.cat(scaled, dim=2).movedim(0, 1)

    def mean_squares(self, x: Tensor, pull: Pull) -> Tensor:
        """(M, F') sums over rows of squared gradients, averaged over the inputs of each unit; biases have no part."""
        if self.is_linear:
            parts = [part for part in self.parts(x, pull) if part.has_weight]
            sums = [torch.einsum("mbo,b->mo", part.delta.square(), part.h.square().mean(dim=1)) for part in parts]
            return torch.cat(sums, dim=1)
        sums = self.gradients(x, pull).square().sum(dim=0)
        shapes = dict(self.body.named_parameters())
        split = sums.split([shapes[name].numel() for name in self.names], dim=1)
        pairs = zip(self.names, split, strict=True)
        units = [part.unflatten(1, shapes[n].shape).flatten(2).mean(dim=2) for n, part in pairs if shapes[n].ndim > 1]
        return torch.cat(units, dim=1)

    def _forward(self, x: Tensor) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Outputs, and what went into and came out of each compared layer."""
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
            def hook(_: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
                z = out if out.requires_grad else out.requires_grad_()
                self._fired.append((name, given[0].ndim))
                seen[name] = (given[0].detach(), z)
                # What follows may work in place, and would change what was kept.
                return z.clone()

            return hook

        self._fired = []
        handles = [layer.register_forward_hook(keep(name)) for name, layer in self.layers.items()]
        try:
            with torch.enable_grad():
                outputs = self.body(x)
        finally:
            for handle in handles:
                handle.remove()
        return outputs, seen

    def _closed_form_holds(self, rows: Tensor) -> bool:
        if not self.layers:
            return False
        outputs, _ = self._forward(rows)
        if sorted(self._fired) != sorted((name, 2) for name in self.layers):
            return False
        cotangent = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0)).to(outputs)
        closed: dict[str, Tensor] = {}
        parts = self.parts(rows, lambda _: cotangent.unsqueeze(0))
        for (name, _), part in zip(self._fired, parts, strict=True):
            closed[f"{name}.weight".lstrip(".")] = part.delta[0].T @ part.h
            closed[f"{name}.bias".lstrip(".")] = part.delta[0].sum(dim=0)
        true = self._sum_of_gradients(rows, cotangent)
        # Half of the digits: the sums are taken in other orders.
        tolerance = max(float(gradient.abs().max()) for gradient in true.values()) * torch.finfo(self.dtype).eps ** 0.5
        return all(bool(((closed[name] - gradient).abs() <= tolerance).all()) for name, gradient in true.items())

    def _sum_of_gradients(self, rows: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
        """Of the compared parameters, over rows, by autograd."""
        weights = {name: weight.detach() for name, weight in self.body.named_parameters()}
        moved = {name: weights[name].requires_grad_() for name in self.names}
        with torch.enable_grad(), put_back(self.body):
            outputs = functional_call(self.body, {**weights, **moved}, (rows,))
        found = torch.autograd.grad(outputs, [*moved.values()], cotangent, materialize_grads=True)
        return dict(zip(moved, found, strict=True))


def l1_distances(v: Tensor) -> Tensor:
    """(B, K, K) distances |v_s - v_t|_1 at each row, of stand-ins (B, K, F)."""
    return torch.cdist(v, v, p=1.0)


def cosines(v: Tensor) -> Tensor:
    """(B, K, K) cosines at each row, of stand-ins (B, K, F); NaN with a gradient of zero."""
    norms = v.norm(dim=2, keepdim=True)
    unit = v / torch.where(norms > 0, norms, torch.nan)
    return unit @ unit.movedim(1, 2)


def cross_products(one: Sequence[LayerPart], other: Sequence[LayerPart]) -> Tensor:
    """<g(x), g'(x')> (B, B') of two tasks between rows of the one and rows of the other, out of parts with one cotangent each.

    There is no such form for distances in the 1-norm.
    """
    total = torch.zeros(())
    for a, b in zip(one, other, strict=True):
        inputs = (a.h @ b.h.T) * a.has_weight + float(a.has_bias)
        total = total + inputs * (a.delta[0] @ b.delta[0].T)
    return total
