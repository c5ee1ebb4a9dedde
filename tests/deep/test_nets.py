import math

import pytest
import torch
from torch import nn

from taskloom.deep import MLP, FitOptions, SharedBottom, StackedNets
from taskloom.deep._nets import OwnRowsNet, check_outputs
from taskloom.deep._stacked import keep_better
from taskloom.tasks import OptionError, Task, TaskloomError

REGRESSIONS = [Task(f"t{t}") for t in range(4)]
MIXED = [Task("a"), Task("b", "multiclass", classes=(0, 1, 2)), Task("c", "binary")]


@pytest.mark.parametrize("tasks", [REGRESSIONS, MIXED, REGRESSIONS[:1]])
def test_all_heads_in_one_product_equal_each_head_alone(tasks):
    net = SharedBottom(6, tasks, hidden=(8, 5)).double()
    x = torch.randn(7, 6, dtype=torch.float64)
    alone = torch.cat([head(net.encoder(x)) for head in net.heads], dim=1)
    torch.testing.assert_close(net(x), alone)


@pytest.mark.parametrize("tasks", [REGRESSIONS, MIXED])
def test_own_rows_equal_the_plain_net_on_each_tasks_rows(tasks):
    net = SharedBottom(6, tasks, hidden=(8,)).double()
    x = torch.randn(len(tasks), 9, 6, dtype=torch.float64)
    outputs = OwnRowsNet(net, tasks)(x)
    start = 0
    for t, task in enumerate(tasks):
        torch.testing.assert_close(outputs[t, :, : task.n_outputs], net(x[t])[:, start : start + task.n_outputs])
        start += task.n_outputs


def _nets(n, dropout=0.0):
    return [SharedBottom(5, REGRESSIONS[:1], hidden=(6,), dropout=dropout) for _ in range(n)]


def _wrapped(net):
    """The same net as a module that the stack does not know: it goes through vmap."""
    return nn.Sequential(net)


@pytest.mark.parametrize("tasks", [REGRESSIONS[:1], MIXED])
@pytest.mark.parametrize("wrap", [lambda net: net, _wrapped], ids=["own product", "vmap"])
def test_stacked_outputs_equal_each_net_alone(wrap, tasks):
    nets = [wrap(SharedBottom(5, tasks, hidden=(6, 4))) for _ in range(3)]
    x = torch.randn(3, 4, 5)
    torch.testing.assert_close(StackedNets(nets)(x), torch.stack([net(rows) for net, rows in zip(nets, x, strict=True)]))


class _Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRU(1, 3, batch_first=True), nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.cell(x.unsqueeze(-1))[0][:, -1])


class _Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 1)

    def forward(self, x):
        return self.head(x if x.mean() > 0 else -x)


@pytest.mark.parametrize("make", [_Recurrent, _Branching])
def test_nets_that_vmap_cannot_run_are_stacked_all_the_same(make):
    nets = [make() for _ in range(4)]
    stacked, x = StackedNets(nets, n_groups=2), torch.randn(4, 6, 5) + torch.tensor([-1, 1, -1, 1]).reshape(4, 1, 1)
    outputs = stacked(x)
    torch.testing.assert_close(outputs, torch.stack([net(rows) for net, rows in zip(nets, x, strict=True)]))
    outputs.square().sum().backward()
    for m, net in enumerate(nets):
        net(x[m]).square().sum().backward()
        own = [weight.grad for weight in net.parameters()]
        torch.testing.assert_close([weight.grad[m % 2] for weight in stacked.groups[m // 2]], own)


@pytest.mark.parametrize("n_groups", [1, 2, 6])
def test_stacked_gradients_and_states_equal_each_nets_own(n_groups):
    nets = _nets(6)
    stacked, x = StackedNets(nets, n_groups), torch.randn(6, 4, 5)
    stacked(x).square().sum().backward()
    for m, net in enumerate(nets):
        net(x[m]).square().sum().backward()
        gradient = stacked.groups[m // (6 // n_groups)][0].grad
        torch.testing.assert_close(gradient[m % (6 // n_groups)], net.encoder[0].weight.grad)
        state = stacked.net_state(stacked.state_dict(), m)
        assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())


def test_stacked_nets_keep_running_statistics_apart():
    nets = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)) for _ in range(3)]
    stacked, x = StackedNets(nets).train(), torch.randn(3, 20, 3)
    stacked(x)
    for m, net in enumerate(nets):
        net.train()(x[m])
        state = stacked.net_state(stacked.state_dict(), m)
        for name, value in net.state_dict().items():
            torch.testing.assert_close(state[name], value)


@pytest.mark.parametrize("wrap", [lambda net: net, _wrapped], ids=["own product", "vmap"])
def test_dropout_differs_between_nets_and_rests_in_evaluation(wrap):
    stacked = StackedNets([wrap(net) for net in [*_nets(1, dropout=0.5)] * 2])
    x = torch.randn(1, 50, 5).expand(2, -1, -1)
    outputs = stacked.train()(x)
    assert not torch.equal(outputs[0], outputs[1])
    outputs = stacked.eval()(x)
    assert torch.equal(outputs[0], outputs[1])


def test_frozen_weights_stay_frozen_in_a_stack():
    nets = _nets(2)
    for net in nets:
        net.encoder.requires_grad_(False)
    stacked = StackedNets(nets)
    stacked(torch.randn(2, 4, 5)).sum().backward()
    trained = {name: weight.grad is not None for name, weight in zip(stacked.names, stacked.groups[0], strict=True)}
    assert trained == {name: name.startswith("heads") for name in stacked.names}


def test_only_what_improved_is_kept():
    stacked = StackedNets(_nets(4), n_groups=2)
    best = {name: torch.zeros_like(value) for name, value in stacked.state_dict().items()}
    current = {name: torch.ones_like(value) for name, value in stacked.state_dict().items()}
    keep_better(best, current, torch.tensor([False, True, True, False]))
    kept = [stacked.net_state(best, m)["encoder.0.weight"].mean().item() for m in range(4)]
    assert kept == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SharedBottom(3, REGRESSIONS, hidden=(0,)), "every width must be at least 1"),
        (lambda: SharedBottom(3, REGRESSIONS, dropout=1.0), "from 0 to below 1"),
        (lambda: MLP()((1, 8, 8), REGRESSIONS), "give a net of your own"),
        (lambda: MLP(hidden=64), "`hidden`=64"),
        (lambda: MLP(hidden=("a",)), "`hidden`=\\('a',\\)"),
        (lambda: MLP(hidden=(1.5,)), "`hidden`=\\(1.5,\\)"),
        (lambda: MLP(dropout=2), "`dropout`=2"),
        (lambda: check_outputs(nn.Linear(5, 4), (3,), REGRESSIONS), "does not map rows of shape \\(3,\\)"),
        (lambda: check_outputs(nn.LSTM(3, 4), (3,), REGRESSIONS), "to a tensor"),
        (lambda: FitOptions(batch_size=1.5), "`batch_size`=1.5"),
        (lambda: FitOptions(batch_size="64"), "`batch_size`='64'"),
        (lambda: FitOptions(max_steps=math.nan), "`max_steps`=nan"),
        (lambda: FitOptions(patience=True), "`patience`=True"),
        (lambda: FitOptions(learning_rate="x"), "`learning_rate`='x'"),
        (lambda: FitOptions(learning_rates=1e-3), "`learning_rates`=0.001: give two"),
        (lambda: FitOptions(learning_rates=None), "`learning_rates`=None: give two"),
        (lambda: FitOptions(learning_rates=(1e-3,)), "give two"),
        (lambda: FitOptions().candidate_rates(0), "`budget`=0"),
        (lambda: FitOptions().candidate_rates(1.5), "`budget`=1.5"),
        (lambda: check_outputs(nn.Linear(3, 5), (3,), REGRESSIONS), "must give \\(2, 4\\)"),
        (lambda: FitOptions(max_steps=0), "`max_steps`=0"),
        (lambda: FitOptions(learning_rate=-1.0), "`learning_rate`=-1.0"),
        (lambda: FitOptions(learning_rates=(1e-2, 1e-3)), "give the least first"),
        (lambda: FitOptions(precision="bf16"), "no precision named `bf16`"),
    ],
)
def test_bad_options_are_refused(call, message):
    with pytest.raises(TaskloomError, match=message):
        call()
    assert issubclass(OptionError, ValueError)
