import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from tests.contracts import ResumeContract, assert_same
from torch import nn

from taskloom.deep._adatask import (
    AdaTaskAdagrad,
    AdaTaskAdam,
    AdaTaskAdamW,
    AdaTaskLite,
    AdaTaskRMSprop,
)
from taskloom.deep._adatask_settings import LossWeightsWarning
from taskloom.tasks import DataError, OptionError, UnknownNameError

PAPER = (AdaTaskAdam, AdaTaskAdamW, AdaTaskRMSprop, AdaTaskAdagrad)
ALL = (*PAPER, AdaTaskLite)
SHAPES = ((7, 5), (5,), (3, 2, 2), ())


def parameters(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def linear_losses(params, K, step, scales=None):
    """K losses whose gradients are chosen numbers, so that nothing hangs on where the parameters are."""
    generator = torch.Generator().manual_seed(100 + step)
    scales = scales or [1.0] * K
    coefficients = [
        [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype) for p in params] for _ in range(K)
    ]
    return [
        scale * sum((c * p).sum() for c, p in zip(cs, params, strict=True))
        for cs, scale in zip(coefficients, scales, strict=True)
    ]


def run(optimizer, params, K, steps, **how):
    for step in range(steps):
        optimizer.zero_grad()
        optimizer.backward(linear_losses(params, K, step, **how))
        optimizer.step()
    return [p.detach().clone() for p in params]


STOCK = [
    (AdaTaskAdam, torch.optim.Adam, {"lr": 0.03}),
    (AdaTaskAdam, torch.optim.Adam, {"lr": 0.03, "weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-6}),
    (AdaTaskAdamW, torch.optim.AdamW, {"lr": 0.03, "weight_decay": 0.1}),
    (AdaTaskRMSprop, torch.optim.RMSprop, {"lr": 0.03, "alpha": 0.9, "weight_decay": 0.1}),
    (AdaTaskAdagrad, torch.optim.Adagrad, {"lr": 0.03, "lr_decay": 0.01, "weight_decay": 0.1}),
]


@pytest.mark.parametrize(
    ("ours", "stock", "options", "kernel"),
    [
        (*row, kernel)
        for row in STOCK
        for kernel in ("fused", "foreach", "loop")
        if row[0] is not AdaTaskRMSprop or kernel != "fused"
    ],
)
def test_one_task_is_the_stock_optimizer_to_the_bit(ours, stock, options, kernel):
    flags = {"foreach": kernel == "foreach"} | ({} if ours is AdaTaskRMSprop else {"fused": kernel == "fused"})
    params, twins = parameters(), parameters()
    optimizer, twin = ours(params, 1, **options, kernel=kernel), stock(twins, **options, **flags)
    for step in range(20):
        optimizer.zero_grad()
        twin.zero_grad()
        optimizer.backward(linear_losses(params, 1, step))
        linear_losses(twins, 1, step)[0].backward()
        optimizer.step()
        twin.step()
    assert_same([p.detach() for p in params], [p.detach() for p in twins])


class Reference:
    """The rules as they stand in the paper, in numpy, one number after the other; a task that is None is skipped."""

    def __init__(self, rule, theta, K, **options):
        self.rule, self.theta, self.K = rule, theta.copy(), K
        self.o = {"weights": [1.0] * K, "factor": 1.0, "decay": 0.0, "lr": 0.05, "b1": 0.9, "b2": 0.99, "eps": 1e-8} | options
        self.m, self.v, self.t = np.zeros((K, *theta.shape)), np.zeros((K, *theta.shape)), np.zeros(K)

    def step(self, grads):
        o, total, decoupled = self.o, 0.0, self.rule == "adamw"
        for k, bare in enumerate(grads):
            if bare is None:
                continue
            g = bare if decoupled else bare + o["decay"] / self.K * self.theta
            self.t[k] += 1
            if self.rule == "adagrad":
                self.v[k] += g**2
            else:
                self.v[k] = o["b2"] * self.v[k] + (1 - o["b2"]) * g**2
            self.m[k] = o["b1"] * self.m[k] + (1 - o["b1"]) * g
            if self.rule in {"adam", "adamw"}:
                up, down = self.m[k] / (1 - o["b1"] ** self.t[k]), self.v[k] / (1 - o["b2"] ** self.t[k])
            else:
                up, down = g, self.v[k]
            total = total + o["weights"][k] * up / (np.sqrt(down) + o["eps"])
        if any(g is not None for g in grads):
            self.theta = self.theta * (1 - o["lr"] * o["decay"] * decoupled) - o["lr"] * o["factor"] * total


RULES = {"adam": AdaTaskAdam, "adamw": AdaTaskAdamW, "rmsprop": AdaTaskRMSprop, "adagrad": AdaTaskAdagrad}


@pytest.mark.parametrize("kernel", ["auto", "foreach", "loop"])
@pytest.mark.parametrize("reduction", ["sum", "mean", "rsqrt"])
@pytest.mark.parametrize("rule", RULES)
def test_every_kernel_equals_the_rule_written_out(rule, reduction, kernel):
    K, rng = 3, np.random.default_rng(1)
    theta = rng.normal(size=(4, 3))
    weights = [1.0, 0.0, 2.5] if kernel == "loop" else [0.5, 1.0, 2.0]
    factor = {"sum": 1.0, "mean": 1 / K, "rsqrt": K**-0.5}[reduction]
    reference = Reference(rule, theta, K, weights=weights, factor=factor, decay=0.1)
    weight = nn.Parameter(torch.tensor(theta))
    decay_rate = {"rmsprop": {"alpha": 0.99, "eps": 1e-8}, "adagrad": {"eps": 1e-8}}.get(rule, {"betas": (0.9, 0.99)})
    optimizer = RULES[rule](
        [weight], K, lr=0.05, weight_decay=0.1, reduction=reduction, task_weights=weights, kernel=kernel, **decay_rate
    )
    for step in range(25):
        grads = [None if (step + k) % 4 == 0 or step == 7 else 10.0**k * rng.normal(size=theta.shape) for k in range(K)]
        reference.step(grads)
        optimizer.backward([None if g is None else (torch.tensor(g) * weight).sum() for g in grads])
        optimizer.step()
    np.testing.assert_allclose(weight.detach().numpy(), reference.theta, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kernel", ["fused", "foreach", "loop"])
def test_kernels_agree_in_32_bits(kernel):
    params, twins = parameters(), parameters(dtype=torch.float64)
    ours = run(AdaTaskAdamW(params, 4, lr=0.01, kernel=kernel), params, 4, 30)
    truth = run(AdaTaskAdamW(twins, 4, lr=0.01, kernel="loop"), twins, 4, 30)
    for one, two in zip(ours, truth, strict=True):
        torch.testing.assert_close(one.double(), two, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ours", ALL)
def test_the_scale_of_a_loss_does_not_matter(ours):
    ends = []
    for scales in ([1.0, 1.0], [1.0, 100.0]):
        params = parameters(dtype=torch.float64)
        ends.append(run(ours(params, 2, lr=0.01, eps=1e-20), params, 2, 40, scales=scales))
    for one, two in zip(*ends, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ours", ALL)
def test_the_order_of_tasks_does_not_matter(ours):
    def end(names):
        params = parameters(dtype=torch.float64)
        optimizer = ours(params, names, lr=0.01, task_weights={"a": 1.0, "b": 0.3, "c": 2.0})
        for step in range(20):
            optimizer.backward(dict(zip("abc", linear_losses(params, 3, step), strict=True)))
            optimizer.step()
        return params

    for one, two in zip(end(["a", "b", "c"]), end(["c", "a", "b"]), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ours", PAPER)
def test_equal_tasks_move_k_times_as_far_as_one(ours):
    one, four = (nn.Parameter(torch.zeros(5, dtype=torch.float64)) for _ in range(2))
    optimizers = ours([one], 1, lr=0.01), ours([four], 4, lr=0.01)
    for step in range(10):
        c = torch.randn(5, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        for weight, optimizer, K in zip((one, four), optimizers, (1, 4), strict=True):
            optimizer.param_groups[0]["weight_decay"] = 0.0
            optimizer.backward([(c * weight).sum()] * K, retain_graph=False) if K == 1 else optimizer.backward(
                [(c * weight).sum() for _ in range(K)]
            )
            optimizer.step()
    torch.testing.assert_close(four, 4 * one)


@pytest.mark.parametrize("ours", ALL)
def test_an_absent_task_is_left_as_it_was_and_a_zero_gradient_is_seen(ours):
    params = parameters()
    optimizer = ours(params, ["a", "b"])
    run(optimizer, params, 2, 3)
    before = copy.deepcopy({key: value for key, value in optimizer.state[params[0]].items() if key.endswith("_b")})
    optimizer.backward({"a": linear_losses(params, 1, 9)[0]})
    optimizer.step()
    after = {key: value for key, value in optimizer.state[params[0]].items() if key.endswith("_b")}
    assert_same(before, after)
    assert float(optimizer.state[params[0]]["step_a"]) == 4
    optimizer.backward([None, 0.0 * sum(p.sum() for p in params)])
    optimizer.step()
    seen = optimizer.state[params[0]]
    assert float(seen["step_b"]) == 4
    assert float(seen["step_a"]) == 4
    if ours is not AdaTaskAdagrad:
        key = next(key for key in before if key != "step_b")
        assert (seen[key].abs() <= before[key].abs()).all()
        assert not torch.equal(seen[key], before[key])


def test_a_parameter_that_a_loss_does_not_reach_is_skipped_for_that_task_alone():
    one, two = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = AdaTaskAdamW([one, two], ["a", "b"], lr=0.1, weight_decay=0.5)
    for _ in range(3):
        optimizer.backward([one.sum(), one.sum() + two.sum()])
        optimizer.step()
    optimizer.backward([one.sum(), None])
    optimizer.step()
    ages = [[float(optimizer.state[p].get(f"step_{task}", 0)) for task in "ab"] for p in (one, two)]
    assert ages == [[4, 3], [0, 3]]
    # Two has lost 0.1 to its task and a twentieth to decay, three times.
    expected = 1.0
    for _ in range(3):
        expected = expected * 0.95 - 0.1
    torch.testing.assert_close(two.detach(), torch.full((3,), expected))


def test_a_step_without_anything_fed_changes_nothing():
    params = parameters()
    optimizer = AdaTaskAdamW(params, 2)
    before = [p.detach().clone() for p in params]
    assert optimizer.step() is None
    assert_same(before, [p.detach() for p in params])
    assert optimizer.state_dict()["state"] == {}


@pytest.mark.parametrize("K", [1, 2, 5])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_decoupled_decay_acts_once_whatever_the_number_of_tasks(K, reduction):
    weight = nn.Parameter(torch.full((4,), 2.0, dtype=torch.float64))
    optimizer = AdaTaskAdamW([weight], K, lr=0.1, weight_decay=0.2, reduction=reduction)
    optimizer.backward([0.0 * weight.sum() for _ in range(K)])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((4,), 2.0 * 0.98, dtype=torch.float64))


def test_decoupled_decay_survives_a_first_task_of_no_weight():
    weight = nn.Parameter(torch.full((4,), 2.0))
    optimizer = AdaTaskAdamW([weight], 2, lr=0.1, weight_decay=0.2, task_weights=[0, 1])
    optimizer.backward([5 * weight.sum(), 0.0 * weight.sum()])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((4,), 1.96))


@pytest.mark.parametrize("snr", [0.0, 0.3, 1.0, 3.0])
def test_the_squared_update_of_adam_follows_from_signal_to_noise(snr):
    weight = nn.Parameter(torch.zeros(3000))
    optimizer = AdaTaskAdam([weight], ["a", "b"], lr=1e-3, betas=(0.9, 0.999))
    generator, sizes, squares = torch.Generator().manual_seed(0), (1.0, 1000.0), torch.zeros(2)
    for step in range(700):
        grads = [size * (snr + torch.randn(3000, generator=generator)) for size in sizes]
        weight.jac = torch.stack(grads)
        optimizer.step()
        if step >= 500:
            state, t = optimizer.state[weight], step + 1
            for k, name in enumerate("ab"):
                up, down = state[f"exp_avg_{name}"] / (1 - 0.9**t), state[f"exp_avg_sq_{name}"] / (1 - 0.999**t)
                squares[k] += (up / down.sqrt()).square().mean() / 200
    expected = (snr**2 + (1 - 0.9) / (1 + 0.9)) / (snr**2 + 1)
    torch.testing.assert_close(squares, torch.full((2,), expected), rtol=0.03, atol=1e-3)


def test_nothing_promises_that_the_sum_of_losses_falls():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = AdaTaskAdam([weight], 4, lr=0.1)
    optimizer.backward([slope * weight.sum() for slope in (1.0, 1.0, 1.0, -4.0)])
    optimizer.step()
    # The sum has slope -1: going down by twice the rate is going up.
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.2]))


def test_heads_take_the_stock_update():
    params, twins = parameters(), parameters()
    heads, twin_heads = parameters(1), parameters(1)
    groups = [{"params": params}, {"params": heads, "shared": False, "lr": 0.5, "weight_decay": 0.1}]
    optimizer = AdaTaskAdamW(groups, 2, lr=0.01)
    twin = torch.optim.AdamW(twin_heads, lr=0.5, weight_decay=0.1, fused=True)
    for step in range(10):
        optimizer.zero_grad()
        twin.zero_grad()
        own, other = linear_losses(heads, 2, step), linear_losses(twin_heads, 2, step)
        optimizer.backward([a + b for a, b in zip(own, linear_losses(params, 2, step), strict=True)])
        for loss in other:
            loss.backward()
        optimizer.step()
        twin.step()
    assert_same([p.detach() for p in heads], [p.detach() for p in twin_heads])
    assert sorted(optimizer.state[heads[0]]) == ["exp_avg", "exp_avg_sq", "step"]
    assert not torch.equal(params[0], twins[0])


@pytest.mark.parametrize("ours", ALL)
def test_every_optimizer_can_have_heads_and_trains(ours):
    torch.manual_seed(0)
    trunk, heads = nn.Sequential(nn.Linear(4, 16), nn.Tanh()), nn.ModuleList(nn.Linear(16, 1) for _ in range(2))
    x = torch.randn(64, 4)
    targets = [x[:, :1] * x[:, 1:2], 50 * x[:, 2:3]]
    groups = [{"params": trunk.parameters()}, {"params": heads.parameters(), "shared": False}]
    optimizer = ours(groups, ["small", "large"], lr=0.02)
    history = []
    for _ in range(150):
        optimizer.zero_grad()
        losses = [nn.functional.mse_loss(head(trunk(x)), y) for head, y in zip(heads, targets, strict=True)]
        optimizer.backward(losses)
        optimizer.step()
        history.append([float(loss.detach()) for loss in losses])
    assert history[-1][0] < 0.5 * history[0][0]
    assert history[-1][1] < history[0][1]


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.1),
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=12),
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10),
        lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda t: 1 / (1 + t), lambda t: 0.5**t]),
    ],
)
def test_schedulers_work_group_by_group(make):
    def end(stock):
        first, second = parameters(), parameters(1)
        groups = [{"params": first, "lr": 0.1}, {"params": second, "lr": 0.01}]
        optimizer = torch.optim.Adam(groups, fused=True) if stock else AdaTaskAdam(groups, 1)
        scheduler = make(optimizer)
        for step in range(10):
            optimizer.zero_grad()
            losses = linear_losses([*first, *second], 1, step)
            losses[0].backward() if stock else optimizer.backward(losses)
            optimizer.step()
            scheduler.step()
        return [p.detach() for p in (*first, *second)]

    assert_same(end(stock=True), end(stock=False))


def test_a_closure_feeds_and_its_value_comes_back():
    params = parameters()
    optimizer = AdaTaskAdam(params, 2)

    def closure():
        optimizer.zero_grad()
        losses = linear_losses(params, 2, 0)
        optimizer.backward(losses)
        return sum(losses)

    assert torch.is_tensor(optimizer.step(closure))
    assert float(optimizer.state[params[0]]["step_1"]) == 1


def test_weights_may_change_between_steps_and_unknown_ones_are_refused():
    weight = nn.Parameter(torch.zeros(2))
    optimizer = AdaTaskAdam([weight], ["a", "b"], lr=0.1, task_weights={"b": 0.5})
    assert optimizer.task_weights == [1.0, 0.5]
    optimizer.task_weights = [0.0, 2.0]
    optimizer.backward([weight.sum(), weight.sum()])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((2,), -0.2))
    with pytest.raises(UnknownNameError, match="`c`"):
        optimizer.task_weights = {"c": 1.0}
    with pytest.raises(OptionError, match="not negative"):
        optimizer.task_weights = [-1.0, 1.0]


def mean_rows(matrix):
    return matrix.mean(dim=0)


class TestAggregators:
    def test_a_sum_is_the_reduction_sum(self):
        for ours in ALL:
            ends = []
            for aggregator in (None, lambda matrix: matrix.sum(dim=0)):
                params = parameters(dtype=torch.float64)
                optimizer = ours(params, 3, lr=0.01, aggregator=aggregator, task_weights=[1.0, 2.0, 0.5])
                ends.append(run(optimizer, params, 3, 10))
            for one, two in zip(*ends, strict=True):
                torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)

    def test_the_matrix_has_a_row_for_each_task_that_is_there(self):
        seen = []

        def spy(matrix):
            seen.append(matrix.clone())
            return matrix.mean(dim=0)

        one, two = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(4))
        optimizer = AdaTaskAdam([one, two], ["a", "b", "c"], lr=0.1, aggregator=spy)
        optimizer.backward({"c": -two.sum(), "a": one.sum() + two.sum()})
        optimizer.step()
        expected = torch.ones(2, 10)
        expected[1] = torch.tensor([0.0] * 6 + [-1.0] * 4)
        torch.testing.assert_close(seen[0], expected)
        torch.testing.assert_close(one.detach(), torch.full((2, 3), 0.95))
        torch.testing.assert_close(two.detach(), torch.ones(4))

    def test_streaming_keeps_the_rows_apart(self):
        ends = []
        for stream in (True, False):
            params = parameters()
            optimizer = AdaTaskAdam(params, 2, aggregator=mean_rows)
            for step in range(5):
                for name, loss in enumerate(linear_losses(params, 2, step)):
                    with optimizer.task(name, stream=stream):
                        loss.backward()
                optimizer.step()
            ends.append([p.detach() for p in params])
        assert_same(*ends)

    def test_what_is_no_vector_is_refused(self):
        params = parameters()
        optimizer = AdaTaskAdam(params, 2, aggregator=lambda matrix: matrix)
        optimizer.backward(linear_losses(params, 2, 0))
        with pytest.raises(OptionError, match="vector of its columns"):
            optimizer.step()


class Training:
    """A trunk, heads, a schedule, tasks that come and go."""

    def __init__(self, ours, dtype=torch.float32, **joining):
        torch.manual_seed(3)
        self.net = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 2)]).to(dtype)
        groups = [{"params": self.net[0].parameters()}, {"params": self.net[1].parameters(), "shared": False}]
        self.optimizer = ours(groups, ["a", "b"], lr=0.05, **joining)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)
        self.steps = 0

    def advance(self, n):
        dtype = self.net[0].weight.dtype
        for _ in range(n):
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(self.steps)).to(dtype)
            self.optimizer.zero_grad()
            a, b = self.net[1](torch.tanh(self.net[0](x))).T
            losses = {"a": (a - x[:, 0]).square().mean()} if self.steps % 3 else {}
            if self.steps % 2:
                self.optimizer.task_weights = [1.0, 1 + self.steps % 5]
            self.optimizer.backward({**losses, "b": 30 * (b - x[:, 1]).abs().mean()})
            self.optimizer.step()
            self.schedule.step()
            self.steps += 1

    def state_dict(self):
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "steps": self.steps,
        }

    def load_state_dict(self, state):
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.steps = state["steps"]


@pytest.mark.parametrize("ours", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
class TestResume(ResumeContract):
    @pytest.fixture(autouse=True)
    def _choose(self, ours, dtype):
        self.choice = ours, dtype

    def make(self):
        return Training(*self.choice)

    def advance(self, thing, n):
        thing.advance(n)


@pytest.mark.parametrize("kernel", ["foreach", "loop"])
def test_other_kernels_resume_to_the_bit_too(kernel):
    whole, first, second = (Training(AdaTaskAdam, kernel=kernel) for _ in range(3))
    whole.advance(10)
    first.advance(5)
    second.load_state_dict(first.state_dict())
    second.advance(5)
    assert_same(whole.state_dict(), second.state_dict())


def test_moments_of_half_precision_parameters_have_32_bits_before_and_after_a_load():
    first, second = Training(AdaTaskAdam, torch.bfloat16), Training(AdaTaskAdam, torch.bfloat16)
    first.advance(4)
    second.load_state_dict(first.state_dict())
    for training in (first, second):
        state = training.optimizer.state[training.net[0].weight]
        assert {value.dtype for value in state.values()} == {torch.float32}
        assert {value.dtype for value in training.optimizer.state[training.net[1].weight].values()} == {
            torch.bfloat16,
            torch.float32,
        }
    # In bfloat16, 0.999 times a number is that number again.
    optimizer, weight = first.optimizer, first.net[0].weight
    before = optimizer.state[weight]["exp_avg_sq_b"].clone()
    optimizer.backward([None, 0 * weight.sum()])
    optimizer.step()
    torch.testing.assert_close(optimizer.state[weight]["exp_avg_sq_b"], 0.999 * before)


def test_a_loaded_state_is_a_copy():
    one, two = Training(AdaTaskAdam), Training(AdaTaskAdam)
    one.advance(4)
    state = one.optimizer.state_dict()
    kept = copy.deepcopy(state)
    two.load_state_dict(one.state_dict())
    two.advance(3)
    assert_same(state, kept)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])  # noqa: S301
def test_copies_go_on_like_the_original(clone):
    one = Training(AdaTaskAdam, reduction="mean")
    one.advance(5)
    two = clone(one)
    one.advance(5)
    two.advance(5)
    assert_same(one.state_dict(), two.state_dict())


def test_moments_have_the_parameters_shape_and_the_tasks_name():
    params = parameters()
    optimizer = AdaTaskAdam(params, ["up", "down"])
    run(optimizer, params, 2, 1)
    state = optimizer.state[params[0]]
    assert sorted(state) == ["exp_avg_down", "exp_avg_sq_down", "exp_avg_sq_up", "exp_avg_up", "step_down", "step_up"]
    assert {tuple(value.shape) for key, value in state.items() if "avg" in key} == {(7, 5)}


def test_tasks_can_be_added_and_removed():
    params = parameters()
    optimizer = AdaTaskAdam(params, ["a", "b"], reduction="mean")
    run(optimizer, params, 2, 2)
    optimizer.add_task("c", weight=0.5)
    run(optimizer, params, 3, 2)
    assert float(optimizer.state[params[0]]["step_a"]) == 4
    assert float(optimizer.state[params[0]]["step_c"]) == 2
    assert optimizer.task_weights == [1.0, 1.0, 0.5]
    optimizer.remove_task("a")
    run(optimizer, params, 2, 1)
    assert optimizer.tasks == ["b", "c"]
    assert not [key for key in optimizer.state[params[0]] if key.endswith("_a")]
    with pytest.raises(OptionError, match="occurs twice"):
        optimizer.add_task("b")
    with pytest.raises(UnknownNameError, match="`a`"):
        optimizer.remove_task("a")
    optimizer.remove_task("b")
    with pytest.raises(OptionError, match="last task"):
        optimizer.remove_task("c")


def test_a_state_of_other_tasks_or_groups_is_refused():
    params = parameters()
    optimizer = AdaTaskAdam(params, ["a", "b"])
    with pytest.raises(DataError, match="add_task"):
        optimizer.load_state_dict(AdaTaskAdam(parameters(), ["a", "c"]).state_dict())
    with pytest.raises(ValueError, match="group"):
        optimizer.load_state_dict(AdaTaskAdam(parameters()[:2], ["a", "b"]).state_dict())


@pytest.mark.parametrize(
    ("ours", "kind"),
    [
        (AdaTaskAdam, torch.optim.Adam),
        (AdaTaskAdam, AdaTaskLite),
        (AdaTaskAdam, AdaTaskAdagrad),
        (AdaTaskRMSprop, AdaTaskAdam),
        (AdaTaskAdagrad, torch.optim.Adagrad),
        (AdaTaskLite, AdaTaskAdam),
    ],
)
def test_a_state_of_another_kind_is_refused_and_training_goes_on_as_if_nothing_were(ours, kind):
    training, twin = Training(ours), Training(ours)
    for one in (training, twin):
        one.advance(2)
    groups = [{"params": group["params"]} for group in training.optimizer.param_groups]
    other = kind(groups, training.optimizer.tasks) if kind in ALL else kind(groups)
    with pytest.raises(DataError, match=f"{ours.__name__} has"):
        training.optimizer.load_state_dict(other.state_dict())
    for one in (training, twin):
        one.advance(2)
    assert_same(training.state_dict(), twin.state_dict())


def test_adams_state_goes_into_adamw_as_in_torch():
    one, two = Training(AdaTaskAdam), Training(AdaTaskAdamW)
    one.advance(2)
    two.optimizer.load_state_dict(one.optimizer.state_dict())
    assert_same(one.optimizer.state_dict()["state"], two.optimizer.state_dict()["state"])


def test_a_group_that_is_marked_otherwise_later_is_refused_and_nothing_moves():
    trunk, head = nn.Linear(3, 4), nn.Linear(4, 2)
    optimizer = AdaTaskAdam([{"params": trunk.parameters()}, {"params": head.parameters(), "shared": False}], 2)
    before = [weight.clone() for weight in (*trunk.parameters(), *head.parameters())]
    optimizer.param_groups[1]["shared"] = True
    optimizer.backward(list(head(trunk(torch.ones(5, 3))).square().mean(dim=0)))
    with pytest.raises(OptionError, match="`shared` of group 1 was changed"):
        optimizer.step()
    assert all(torch.equal(old, new) for old, new in zip(before, (*trunk.parameters(), *head.parameters()), strict=True))


def test_a_hook_of_the_caller_sees_and_changes_what_is_loaded():
    one, two = Training(AdaTaskAdam), Training(AdaTaskAdam)
    one.advance(3)

    def forget_moments(_, state):
        return {**state, "state": {}}

    two.optimizer.register_load_state_dict_pre_hook(forget_moments)
    two.optimizer.load_state_dict(one.optimizer.state_dict())
    assert not any(len(state) for state in two.optimizer.state.values())


def test_a_group_can_be_added_later():
    params, more = parameters(), parameters(1)
    optimizer = AdaTaskAdam(params, 2)
    run(optimizer, params, 2, 2)
    optimizer.add_param_group({"params": more, "lr": 0.1})
    run(optimizer, [*params, *more], 2, 1)
    assert float(optimizer.state[params[0]]["step_0"]) == 3
    assert float(optimizer.state[more[0]]["step_0"]) == 1
    with pytest.raises(OptionError, match="`lr`"):
        optimizer.add_param_group({"params": parameters(2), "lr": -1.0})
    assert len(optimizer.param_groups) == 2


@pytest.mark.parametrize("ours", ALL)
def test_training_under_bfloat16_autocast_works(ours):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 2))
    x = torch.randn(32, 6)
    optimizer = ours(net.parameters(), 2, lr=0.01)
    losses = []
    for _ in range(40):
        with torch.autocast("cpu", torch.bfloat16):
            a, b = net(x).T
        losses = [(a.float() - x[:, 0]).square().mean(), 100 * (b.float() - x[:, 1]).square().mean()]
        optimizer.backward(losses)
        optimizer.step()
    assert float(losses[0].detach()) < 0.8
    assert {value.dtype for value in optimizer.state[net[0].weight].values()} == {torch.float32}


class TestLite:
    def test_a_vector_follows_rmsprop_with_bias_correction_and_momentum(self):
        weight, rng = nn.Parameter(torch.zeros(6, dtype=torch.float64)), np.random.default_rng(0)
        optimizer = AdaTaskLite([weight], 2, lr=0.1, betas=(0.8, 0.9))
        theta, momentum, v = np.zeros(6), np.zeros(6), np.zeros((2, 6))
        for t in range(1, 15):
            grads = rng.normal(size=(2, 6)) * [[1], [50]]
            v = 0.9 * v + 0.1 * grads**2
            momentum = 0.8 * momentum + 0.2 * (grads / (np.sqrt(v / (1 - 0.9**t)) + 1e-8)).sum(axis=0)
            theta -= 0.1 * momentum / (1 - 0.8**t)
            optimizer.backward([(torch.tensor(g) * weight).sum() for g in grads])
            optimizer.step()
        np.testing.assert_allclose(weight.detach().numpy(), theta, rtol=1e-11)

    def test_squares_of_rank_one_are_kept_exactly(self):
        rng = np.random.default_rng(0)
        row, col = rng.uniform(0.1, 3, size=4), rng.uniform(0.1, 3, size=(2, 3))
        weight = nn.Parameter(torch.zeros(4, 2, 3, dtype=torch.float64))
        optimizer = AdaTaskLite([weight], 1, lr=0.1, betas=(0.9, 0.9), eps=0.0)
        g = torch.tensor(row[:, None, None] * col)
        for _ in range(5):
            optimizer.backward([(g * weight).sum()])
            optimizer.step()
        torch.testing.assert_close(weight.detach(), torch.full((4, 2, 3), -0.5, dtype=torch.float64))

    def test_its_state_is_p_and_a_row_and_a_column_a_task(self):
        weight = nn.Parameter(torch.zeros(30, 40))
        optimizer = AdaTaskLite([weight], 5)
        optimizer.backward([weight.sum() * k for k in range(1, 6)])
        optimizer.step()
        kept = {key: value.numel() for key, value in optimizer.state[weight].items() if not key.startswith("step")}
        assert sum(kept.values()) == 1200 + 5 * 70

    def test_a_gradient_of_zeros_is_no_division_by_zero(self):
        weight = nn.Parameter(torch.ones(3, 4))
        optimizer = AdaTaskLite([weight], 1)
        optimizer.backward([0 * weight.sum()])
        optimizer.step()
        assert torch.equal(weight, torch.ones(3, 4))


class TestBadOptions:
    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"tasks": 0}, "`tasks`=0"),
            ({"tasks": True}, "`tasks`=True"),
            ({"tasks": None}, "`tasks`=None"),
            ({"tasks": 2.0}, "`tasks`=2.0"),
            ({"lr": None}, "`lr`=None"),
            ({"lr": "x"}, "`lr`='x'"),
            ({"betas": 0.9}, "`betas`=0.9"),
            ({"task_weights": 1.0}, "`task_weights`=1.0"),
            ({"task_weights": {"0": "x"}}, "`task_weights`={'0': 'x'}"),
            ({"tasks": "ab"}, "`tasks`='ab'"),
            ({"tasks": []}, "at least one name"),
            ({"tasks": ["a", ""]}, "not empty"),
            ({"tasks": ["a", "a"]}, "occurs twice"),
            ({"tasks": ["a", "sq_a"]}, "rename one"),
            ({"lr": -1.0}, "`lr`"),
            ({"lr": math.nan}, "`lr`"),
            ({"eps": -1.0}, "`eps`"),
            ({"weight_decay": math.inf}, "`weight_decay`"),
            ({"betas": (0.9, 1.0)}, "`betas`"),
            ({"betas": (-0.1, 0.9)}, "`betas`"),
            ({"betas": (0.9,)}, "`betas`"),
            ({"task_weights": [1.0]}, "one for each of the 2 tasks"),
            ({"task_weights": [1.0, math.nan]}, "finite"),
            ({"aggregator": 3}, "callable"),
            ({"aggregator": mean_rows, "reduction": "mean"}, "leave one out"),
        ],
    )
    def test_is_refused_with_its_name(self, options, match):
        with pytest.raises(OptionError, match=match):
            AdaTaskAdam(parameters(), **({"tasks": 2} | options))

    def test_whole_numbers_of_numpy_names_of_a_generator_and_a_rate_in_a_tensor_are_taken(self):
        assert AdaTaskAdam(parameters(), np.int64(2)).tasks == ["0", "1"]
        assert AdaTaskAdam(parameters(), (name for name in "ab")).tasks == ["a", "b"]
        assert AdaTaskAdam(parameters(), 2, lr=torch.tensor(0.1)).param_groups[0]["lr"] == torch.tensor(0.1)

    def test_an_option_that_only_the_torch_twin_has_is_named(self):
        with pytest.raises(UnknownNameError, match="no option named `amsgrad`"):
            AdaTaskAdam(parameters(), 2, amsgrad=True)

    @pytest.mark.parametrize(("name", "value"), [("reduction", "maen"), ("kernel", "tritn")])
    def test_an_unknown_word_is_refused_with_the_known_ones(self, name, value):
        with pytest.raises(UnknownNameError, match=value):
            AdaTaskAdam(parameters(), 2, **{name: value})

    def test_others(self):
        with pytest.raises(OptionError, match="`alpha`"):
            AdaTaskRMSprop(parameters(), 2, alpha=1.5)
        with pytest.raises(OptionError, match="`lr_decay`"):
            AdaTaskAdagrad(parameters(), 2, lr_decay=-1)
        with pytest.raises(OptionError, match="AdaTaskRMSprop on `cpu`"):
            AdaTaskRMSprop(parameters(), 2, kernel="fused")
        with pytest.raises(OptionError, match="`shared`='yes'"):
            AdaTaskAdam([{"params": parameters(), "shared": "yes"}], 2)
        with pytest.raises(OptionError, match="complex"):
            AdaTaskAdam([nn.Parameter(torch.ones(2, dtype=torch.complex64))], 2)

    def test_sharded_parameters_are_refused(self):
        weight = nn.Parameter(torch.ones(2))
        weight.device_mesh = object()
        with pytest.raises(OptionError, match="FSDP"):
            AdaTaskAdam([weight], 2)


def test_a_saved_state_loads_without_pickled_code():
    training = Training(AdaTaskAdam)
    training.advance(3)
    file = io.BytesIO()
    torch.save(training.optimizer.state_dict(), file)
    file.seek(0)
    assert_same(torch.load(file, weights_only=True), training.optimizer.state_dict())


@pytest.mark.parametrize("ours", ALL)
def test_weights_of_losses_are_warned_of_with_the_reason_and_change_nothing(ours):
    ends = []
    for given in (None, {"0": 100.0}):
        params = parameters()
        if given is None:
            optimizer = ours(params, 2)
        else:
            with pytest.warns(LossWeightsWarning, match="divided out with it; give `task_weights`, which act after"):
                optimizer = ours(params, 2, loss_weights=given)
        ends.append(run(optimizer, params, 2, 3))
    assert_same(*ends)


def test_a_loss_weight_does_what_the_warning_says_and_a_task_weight_acts():
    def moved(factor, **weights):
        params = parameters(dtype=torch.float64)
        optimizer = AdaTaskAdam(params, 2, lr=0.01, eps=1e-20, **weights)
        for step in range(5):
            one, two = linear_losses(params, 2, step)
            optimizer.backward([one, factor * two])
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in params])

    plain = moved(1.0)
    torch.testing.assert_close(moved(1000.0), plain, rtol=1e-9, atol=1e-12)
    assert (moved(1.0, task_weights=[1.0, 0.2]) - plain).abs().max() > 1e-3


def test_the_warning_points_at_the_callers_line():
    with pytest.warns(LossWeightsWarning) as caught:
        AdaTaskAdam(parameters(), 2, loss_weights=[1.0, 2.0])
    assert caught[0].filename == __file__
