"""Two processes with half of a batch each: one view of the losses, one choice of groups, one set of weights."""

import numpy as np
import pytest
import torch
from tests.deep.two_processes import results_of
from torch import nn

from taskloom.deep import AdaTaskAdam, SelectiveGroups, SelectiveOptions

CASES = ["ddp", "adatask", "first_order", "missing", "alone"]


def make(case, rank):
    torch.manual_seed(0)
    net = nn.ModuleDict(
        {"trunk": nn.Sequential(nn.Linear(6, 8), nn.Tanh()), "heads": nn.ModuleList(nn.Linear(8, 1) for _ in range(6))}
    )
    groups = [{"params": net["trunk"].parameters()}, {"params": net["heads"].parameters(), "shared": False}]
    if case == "adatask":
        return net, AdaTaskAdam(groups, 6, lr=0.01)
    return net, torch.optim.Adam(net.parameters(), lr=0.01)


class Whole(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        z = self.net["trunk"](x)
        return torch.cat([head(z) for head in self.net["heads"]], dim=1)


def train(case, rank, steps=24):
    """Rank 0 and 1 have half of each batch, None has all of it. In `missing`, task 1 is only in the half of rank 1."""
    net, optimizer = make(case, rank)
    whole = Whole(net)
    if rank is not None and case not in {"adatask", "alone"}:
        whole = nn.parallel.DistributedDataParallel(whole)
    options = SelectiveOptions(
        affinity="first_order" if case == "first_order" else "proximal",
        measure_every=1,
        preference="median",
        data_parallel=False if case == "alone" else None,
    )
    # Seeds that differ between processes are a mistake that must not part them.
    seed = 0 if rank is None else rank
    selective = SelectiveGroups(optimizer, tasks=6, beta=0.1, warmup=4, regroup_every=2, seed=seed, options=options)
    chosen = []
    for step in range(steps):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        mine = slice(None) if rank is None else slice(8 * rank, 8 * rank + 8)

        def closure(x=x, mine=mine):
            losses = (whole(x[mine]) - x[mine].roll(1, dims=1)).square().mean(dim=0)
            if case == "missing":
                gone = torch.tensor([False, rank == 0, False, False, False, False])
                losses = torch.where(gone, torch.nan, losses)
            return losses

        first = selective.step(closure)
        chosen.append([sorted(group) for group in selective.groups])
    costs = vars(selective.costs)
    return {
        "net": net.state_dict(),
        "chosen": chosen,
        "affinity": torch.from_numpy(selective.affinity),
        "first": first,
        "costs": costs,
    }


def find(rank):
    return {case: train(case, rank) for case in CASES}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return results_of(find, tmp_path_factory.mktemp("selective"))


@pytest.mark.parametrize("case", [case for case in CASES if case != "alone"])
def test_processes_with_different_losses_choose_the_same_groups(ranks, case):
    one, two = (rank[case] for rank in ranks)
    assert one["chosen"] == two["chosen"]
    assert one["costs"] == two["costs"]
    assert len({str(groups) for groups in one["chosen"]}) > 1
    for key, value in one["net"].items():
        assert torch.equal(value, two["net"][key])
    assert torch.equal(one["first"], two["first"])
    np.testing.assert_array_equal(one["affinity"], two["affinity"])


@pytest.mark.parametrize("case", ["ddp", "adatask", "first_order"])
def test_two_processes_are_one_on_the_joined_batch(ranks, case):
    expected = train(case, None)
    # Sums in another order round otherwise, and a step later a tie may fall otherwise: the warm-up is what can be compared.
    short = train(case, None, steps=4)
    assert expected["chosen"][:4] == ranks[0][case]["chosen"][:4] == short["chosen"]
    if case != "first_order":
        torch.testing.assert_close(expected["affinity"], ranks[0][case]["affinity"], rtol=0.1, atol=2e-3)


def test_processes_that_are_told_not_to_agree_go_their_own_ways(ranks):
    one, two = (rank["alone"] for rank in ranks)
    assert not torch.equal(one["affinity"], two["affinity"])


def test_a_task_that_one_process_alone_has_is_trained_and_measured(ranks):
    assert torch.isfinite(ranks[0]["missing"]["first"]).all()
    assert torch.isfinite(ranks[0]["missing"]["affinity"][1]).all()
