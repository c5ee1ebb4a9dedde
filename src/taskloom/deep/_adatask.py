"""AdaTask: adaptive learning rates for each task, as torch optimizers.

Letters: K tasks, k one of them, P shared parameters, g gradient, m and v first and second moment, t updates of a task.

In a joint Adam a shared parameter has one second moment, a sum over tasks, so that a task with large gradients also sets how
far all others move. AdaTask (Yang et al., AAAI 2023) keeps moments for each task, normalises each task's gradient by its own,
and adds up the K normalised directions:

    m_k = b1 m_k + (1 - b1) g_k,   v_k = b2 v_k + (1 - b2) g_k^2,   theta -= lr sum_k mhat_k / (sqrt(vhat_k) + eps)

What follows from that rule, and is not in the paper's words: the step does not hang on the scale of any loss, so weights in
front of the losses do nothing, and weights here are factors of the normalised directions. The sum makes a step up to K times
as long as joint Adam's: tune the learning rate anew, or use `reduction`. Nothing guarantees that the sum of losses falls: with
gradients (1, 1, 1, -4) the joint one is negative and the sum of signs positive.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from taskloom.deep._adatask_kernels import (
    Group,
    Lane,
    Rate,
    adagrad_kernel,
    adam_kernel,
    adamw_kernel,
    factored_kernel,
    rmsprop_kernel,
)
from taskloom.deep._adatask_settings import Joining, settings_of
from taskloom.deep._adatask_step import AdaTaskOptimizer

Params = Iterable[Any]


class AdaTaskAdam(AdaTaskOptimizer):
    """Adam with moments for each task (Yang et al., AAAI 2023, their Algorithm 2).

    Deviations from the paper: a task that is absent from a batch is skipped, and each task has its own clock for the bias
    correction; the paper has every task in every batch, and one clock. `weight_decay`, of which the paper says nothing, is the
    gradient of a penalty that is shared out evenly over the K tasks. Half-precision parameters have moments in 32 bits.

    Memory: two numbers for each task and shared parameter. With K = 1 it is `torch.optim.Adam` to the bit.

    Args:
        params: parameters or groups of them; a group with `"shared": False` takes the stock update from its `.grad`.
        tasks: their number or their names.
        lr: learning rate; the sum of K directions makes steps up to K times as long as Adam's.
        betas: of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: strength of a squared penalty.
        joining: `reduction`, `task_weights`, `aggregator`, `kernel`, `data_parallel`; see `Joining`.

    Raises:
        OptionError: a value outside of what it may be.

    Examples:
        >>> import torch
        >>> trunk, heads = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
        >>> groups = [{"params": trunk.parameters()}, {"params": heads.parameters(), "shared": False}]
        >>> optimizer = AdaTaskAdam(groups, ["size", "age"], lr=1e-2)
        >>> size, age = heads(trunk(torch.ones(5, 3))).T
        >>> optimizer.backward({"size": size.square().mean(), "age": 100 * age.abs().mean()})
        >>> optimizer.step()
        >>> sorted(optimizer.state[trunk.weight])
        ['exp_avg_age', 'exp_avg_size', 'exp_avg_sq_age', 'exp_avg_sq_size', 'step_age', 'step_size']
    """

    kernel: ClassVar[Any] = staticmethod(adam_kernel)
    moment_names: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    fused_devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    # A scaler hands over what it found and leaves it to `step` to skip.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Params,
        tasks: int | Sequence[str],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **joining: Unpack[Joining],
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, tasks, defaults, settings_of(joining))


class AdaTaskAdamW(AdaTaskAdam):
    """Adam with moments for each task, and decoupled weight decay (Yang et al., AAAI 2023; Loshchilov & Hutter 2019).

    The decay acts once a step, however many tasks there are, on the parameters that a task reached. The paper has no decay;
    all else is as in `AdaTaskAdam`. With K = 1 it is `torch.optim.AdamW` to the bit.

    Args:
        params: parameters or groups of them; a group with `"shared": False` takes the stock update from its `.grad`.
        tasks: their number or their names.
        lr: learning rate.
        betas: of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: share of a parameter, in units of the learning rate, that a step takes off.
        joining: see `Joining`.

    Raises:
        OptionError: a value outside of what it may be.

    Examples:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = AdaTaskAdamW([weight], 2, lr=0.1)
        >>> optimizer.backward([weight.sum(), -100 * weight[0]])
        >>> optimizer.step()
        >>> [round(value, 4) for value in weight.tolist()]
        [0.999, 0.899]
    """

    kernel: ClassVar[Any] = staticmethod(adamw_kernel)
    decouples_decay: ClassVar[bool] = True

    def __init__(
        self,
        params: Params,
        tasks: int | Sequence[str],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        **joining: Unpack[Joining],
    ) -> None:
        super().__init__(params, tasks, lr, betas, eps, weight_decay, **joining)


class AdaTaskRMSprop(AdaTaskOptimizer):
    """RMSprop with a second moment for each task (Yang et al., AAAI 2023, their Algorithm 2), without momentum.

    With K = 1 it is `torch.optim.RMSprop` to the bit. Deviations from the paper are those of `AdaTaskAdam`.

    Args:
        params: parameters or groups of them; a group with `"shared": False` takes the stock update from its `.grad`.
        tasks: their number or their names.
        lr: learning rate.
        alpha: of the second moment.
        eps: added to its root.
        weight_decay: strength of a squared penalty, shared out over the tasks.
        joining: see `Joining`; there is no fused kernel.

    Raises:
        OptionError: a value outside of what it may be.

    Examples:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = AdaTaskRMSprop([weight], ["a", "b"], reduction="mean")
        >>> optimizer.backward({"a": weight.sum()})
        >>> optimizer.step()
        >>> sorted(optimizer.state[weight])
        ['square_avg_a', 'step_a']
    """

    kernel: ClassVar[Any] = staticmethod(rmsprop_kernel)
    moment_names: ClassVar[tuple[str, ...]] = ("square_avg",)
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Params,
        tasks: int | Sequence[str],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **joining: Unpack[Joining],
    ) -> None:
        defaults = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, tasks, defaults, settings_of(joining))


class AdaTaskAdagrad(AdaTaskOptimizer):
    """AdaGrad with a sum of squares for each task (Yang et al., AAAI 2023, their Algorithm 2).

    With K = 1 it is `torch.optim.Adagrad` to the bit. Deviations from the paper are those of `AdaTaskAdam`.

    Args:
        params: parameters or groups of them; a group with `"shared": False` takes the stock update from its `.grad`.
        tasks: their number or their names.
        lr: learning rate.
        lr_decay: the rate is divided by 1 + `lr_decay` times the age of the task, in steps.
        eps: added to the root of the sum.
        weight_decay: strength of a squared penalty, shared out over the tasks.
        joining: see `Joining`; a fused kernel is there on the CPU alone.

    Raises:
        OptionError: a value outside of what it may be.

    Examples:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = AdaTaskAdagrad([weight], ["a", "b"], lr=0.1)
        >>> optimizer.backward({"a": weight.sum(), "b": 9 * weight.sum()})
        >>> optimizer.step()
        >>> [round(value, 4) for value in weight.tolist()]
        [0.8, 0.8]
    """

    kernel: ClassVar[Any] = staticmethod(adagrad_kernel)
    moment_names: ClassVar[tuple[str, ...]] = ("sum",)
    fused_devices: ClassVar[tuple[str, ...]] = ("cpu",)
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Params,
        tasks: int | Sequence[str],
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        **joining: Unpack[Joining],
    ) -> None:
        defaults = {"lr": lr, "lr_decay": lr_decay, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, tasks, defaults, settings_of(joining))


class AdaTaskLite(AdaTaskOptimizer):
    """A light relative of AdaTask: a factored second moment for each task, one momentum for all. Not the paper's.

    The direction sum_k g_k / (sqrt(vhat_k) + eps) goes into one momentum. Of a matrix of R rows and C columns, v_k is kept as
    row and column means (Shazeer & Stern 2018), of tensors of more dimensions as those of the first against the rest. That is
    P + K (R + C) numbers in place of 2 K P. Decay is decoupled.

    It is AdaTask-RMSprop with bias correction and momentum, not AdaTask-Adam, and what it is worth has not been studied. A task
    that is absent adds nothing new to the momentum, but what it left there earlier goes on acting. Groups with
    `"shared": False` take the update of AdamW.

    Args:
        params: parameters or groups of them; a group with `"shared": False` takes the stock update from its `.grad`.
        tasks: their number or their names.
        lr: learning rate.
        betas: of the momentum and of the second moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled.
        joining: see `Joining`; weights and aggregator act before the momentum.

    Raises:
        OptionError: a value outside of what it may be.

    Examples:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(20, 30))
        >>> optimizer = AdaTaskLite([weight], 2)
        >>> optimizer.backward([weight.sum(), weight.square().sum()])
        >>> optimizer.step()
        >>> sum(tensor.numel() for tensor in optimizer.state[weight].values())
        703
    """

    kernel: ClassVar[Any] = staticmethod(factored_kernel)
    moment_names: ClassVar[tuple[str, ...]] = ("exp_avg_sq", "row", "col")
    has_own_momentum: ClassVar[bool] = True
    decouples_decay: ClassVar[bool] = True
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Params,
        tasks: int | Sequence[str],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **joining: Unpack[Joining],
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, tasks, defaults, settings_of(joining))

    def _stock_kernel(self, lane: Lane, targets: list[Tensor], grads: list[Tensor], group: Group, how: Rate) -> None:
        adamw_kernel(lane, targets, grads, group, how)

    def _settle(self, group: Group, weights: list[Tensor], directions: list[Tensor]) -> None:
        beta1 = group["betas"][0]
        for weight, direction in zip(weights, directions, strict=True):
            state = self.state[weight]
            if "exp_avg" not in state:
                state["exp_avg"] = torch.zeros_like(direction)
                state["step"] = torch.zeros((), dtype=torch.float32)
            state["step"] += 1
        momenta = [self.state[weight]["exp_avg"] for weight in weights]
        torch._foreach_lerp_(momenta, directions, 1 - beta1)
        corrections = [1 - beta1 ** float(self.state[weight]["step"]) for weight in weights]
        torch._foreach_copy_(directions, momenta)
        torch._foreach_div_(directions, corrections)
