"""Two processes that each have half of a batch against one process that has all of it."""

import pytest
import torch
from tests.deep.two_processes import results_of
from torch import nn

from taskloom.deep._adatask import AdaTaskAdam, AdaTaskAdamW, AdaTaskLite
from taskloom.tasks import OptionError

TASKS = ["a", "b", "c"]
CASES = {
    "list": (AdaTaskAdamW, {"reduction": "mean"}),
    "lite": (AdaTaskLite, {}),
    "ddp": (AdaTaskAdam, {}),
    "clipped": (AdaTaskAdam, {"weight_decay": 0.1}),
    "missing": (AdaTaskAdam, {}),
    "scaled": (AdaTaskAdam, {}),
}


def make(case, **more):
    torch.manual_seed(0)
    net = nn.ModuleDict(
        {
            "trunk": nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6)),
            "heads": nn.ModuleList(nn.Linear(6, 1) for _ in TASKS),
        }
    )
    ours, options = CASES[case]
    groups = [{"params": net["trunk"].parameters()}, {"params": net["heads"].parameters(), "shared": False}]
    return net, ours(groups, TASKS, lr=0.05, **options, **more)


class Whole(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        z = self.net["trunk"](x)
        return [head(z).squeeze(1) for head in self.net["heads"]]


def train(case, rank, steps=5, **more):
    """Rank 0 and 1 have half of each batch, None has all of it. In `missing`, task b is only in the half of rank 1."""
    net, optimizer = make(case, **more)
    whole = Whole(net)
    if case == "ddp" and rank is not None:
        whole = nn.parallel.DistributedDataParallel(whole)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=case == "scaled")
    for step in range(steps):
        x = torch.randn(12, 4, generator=torch.Generator().manual_seed(step))
        mine = slice(None) if rank is None else slice(6 * rank, 6 * rank + 6)
        optimizer.zero_grad()
        with whole.no_sync() if hasattr(whole, "no_sync") else torch.enable_grad():
            outputs, target = whole(x[mine]), x[mine]
            losses = {name: 30.0**k * (outputs[k] - target[:, k]).square().mean() for k, name in enumerate(TASKS)}
            if case == "missing":
                del losses["c"]
                losses["b"] = 30 * (outputs[1] - target[:, 1]).square()[-6:].mean()
                if rank == 0:
                    del losses["b"]
            if case == "scaled" and step == 2 and rank in {None, 1}:
                losses["a"] = losses["a"] * torch.inf
            optimizer.backward({name: scaler.scale(loss) for name, loss in losses.items()})
        optimizer.unscale_(scaler)
        if case == "clipped":
            optimizer.clip_task_gradients(0.5)
        scaler.step(optimizer)
        scaler.update()
    state = optimizer.state[net["trunk"][0].weight]
    return net.state_dict(), {key: float(value) for key, value in state.items() if key.startswith("step_")}


def find(rank):
    found = {case: train(case, rank) for case in CASES}
    _, optimizer = make("list")
    try:
        with optimizer.task("a"):
            pass
    except OptionError as error:
        found["stream"] = str(error)
    found["alone"] = train("list", rank, data_parallel=False)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return results_of(find, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", [case for case in CASES if case != "missing"])
def test_two_processes_are_one_on_the_joined_batch(ranks, case):
    expected, ages = train(case, None)
    for rank in ranks:
        assert rank[case][1] == ages
        for key, value in expected.items():
            torch.testing.assert_close(rank[case][0][key], value, rtol=0, atol=1e-6)
    assert ages["step_a"] == (4 if case == "scaled" else 5)


def test_a_task_in_one_process_alone_is_not_diluted_and_one_in_none_is_skipped(ranks):
    expected, ages = train("missing", None)
    for rank in ranks:
        assert rank["missing"][1] == ages == {"step_a": 5.0, "step_b": 5.0}
        for key, value in expected.items():
            torch.testing.assert_close(rank["missing"][0][key], value, rtol=0, atol=1e-6)


def test_processes_stay_equal_to_the_bit(ranks):
    for case in CASES:
        for key, value in ranks[0][case][0].items():
            assert torch.equal(value, ranks[1][case][0][key])


def test_processes_that_are_told_not_to_average_go_their_own_ways(ranks):
    one, two = (rank["alone"][0]["trunk.0.weight"] for rank in ranks)
    assert not torch.equal(one, two)


def test_streaming_over_processes_is_refused(ranks):
    assert "before processes have averaged" in ranks[0]["stream"]
