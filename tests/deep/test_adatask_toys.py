"""The toy of CAGrad (Liu et al. 2021): what AdaTask gains on it, and what it loses."""

import functools

import pytest
import torch

from taskloom.deep import AdaTaskAdam

STARTS = ((-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0))
# From these joint Adam is through within 2500 steps.
LOW_STARTS = (STARTS[1], *STARTS[3:])
LEAST, HEIGHT = -15.09, -8.3552


def toy(x):
    """Both losses (n,) at points (n, 2)."""
    x1, x2 = x.unbind(-1)
    t = torch.tanh(x2)
    slopes = [part.abs().clamp(min=5e-6).log() + 6 for part in (0.5 * (-x1 - 7) + t, 0.5 * (-x1 + 3) - t + 2)]
    bowls = [((side - x1).square() + 0.1 * (x2 + 8).square()) / 10 - 20 for side in (7, -7)]
    above = torch.tanh(x2 / 2)
    return [slope * above.clamp(min=0) - bowl * above.clamp(max=0) for slope, bowl in zip(slopes, bowls, strict=True)]


def points(starts):
    return torch.nn.Parameter(torch.tensor(starts, dtype=torch.float64))


def gradients(x):
    return [torch.autograd.grad(loss.sum(), x, retain_graph=True)[0] for loss in toy(x)]


@functools.cache
def descend(kind, starts, steps, factor=1.0, eps=1e-8):
    """The path (steps, n, 2) from every start; starts do not touch one another, since numbers are moved one by one."""
    x = points(starts)
    optimizer = kind([x], 2, lr=1e-2, eps=eps) if kind is AdaTaskAdam else kind([x], lr=1e-2, eps=eps)
    path = []
    for _ in range(steps):
        first, second = toy(x)
        losses = [factor * first.sum(), second.sum()]
        optimizer.zero_grad()
        if kind is AdaTaskAdam:
            optimizer.backward(losses)
        else:
            sum(losses).backward()
        optimizer.step()
        path.append(x.detach().clone())
    return torch.stack(path)


def furthest(path, other):
    """How far two paths are apart at most, from each start."""
    return (path - other).abs().amax(dim=(0, 2))


def test_the_toy_has_its_least_mean_loss_in_the_middle():
    x = points([(0.0, HEIGHT)])
    assert torch.stack(toy(x)).mean().item() == pytest.approx(LEAST, abs=0.01)
    torch.testing.assert_close(sum(gradients(x)), torch.zeros(1, 2, dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.parametrize("factor", [0.1, 100.0])
def test_the_path_does_not_hang_on_the_scale_of_a_loss_where_eps_is_small(factor):
    as_it_is = descend(AdaTaskAdam, STARTS, 300, eps=1e-30)
    scaled = descend(AdaTaskAdam, STARTS, 300, factor, eps=1e-30)
    assert (as_it_is[-1] - as_it_is[0]).abs().amax(dim=1).min() > 1
    # Rounding is magnified by the kink, some 1e7 times.
    assert furthest(as_it_is, scaled).max() < 1e-6


def test_the_kink_magnifies_what_the_usual_eps_changes():
    apart = furthest(descend(AdaTaskAdam, STARTS, 300), descend(AdaTaskAdam, STARTS, 300, 0.1))
    meets_kink = torch.tensor([x2 > 7 for _, x2 in STARTS])
    assert apart[~meets_kink].max() < 1e-4
    assert apart[meets_kink].min() > 1e-2


def test_the_path_of_joint_adam_hangs_on_the_scale_of_a_loss():
    apart = furthest(descend(torch.optim.Adam, STARTS, 300, eps=1e-30), descend(torch.optim.Adam, STARTS, 300, 0.1, eps=1e-30))
    assert apart.min() > 0.1


def test_joint_adam_ends_in_the_middle_and_adatask_does_not():
    joint, ours = descend(torch.optim.Adam, LOW_STARTS, 2500)[-1], descend(AdaTaskAdam, LOW_STARTS, 1500)[-1]
    joint_means, our_means = (torch.stack(toy(x)).mean(dim=0) for x in (joint, ours))
    torch.testing.assert_close(joint_means, torch.full_like(joint_means, LEAST), atol=0.05, rtol=0)
    assert (our_means - joint_means).min() > 3


def test_adatask_stops_where_its_directions_cancel_though_the_gradients_are_unequal():
    path = descend(AdaTaskAdam, LOW_STARTS, 1500)[..., 0]
    first, second = (grad[:, 0] for grad in gradients(points(descend(AdaTaskAdam, LOW_STARTS, 1500)[-1].tolist())))
    assert (path[-1] - path[1000]).abs().max() < 0.01
    assert path[-1].abs().min() > 6
    assert (first * second).max() < 0
    assert torch.maximum((first / second).abs(), (second / first).abs()).min() > 5
