"""The affinity that selective groups kept: its direction, its signs, and what it never saw."""

import numpy as np
import pytest
import torch

from taskloom.deep import FitOptions, SelectiveGroups, SelectiveOptions, SharedBottom, fit
from taskloom.relate import select, tracked
from taskloom.tasks import DataError, TaskData

# What an update of the row's task does to the loss of the column's: `poor` takes from `rich` and gives nothing back.
EFFECTS = np.array([[0.10, 0.05, 0.0], [0.02, 0.10, -0.03], [0.0, 0.04, 0.10]])
NAMES = ["rich", "poor", "odd"]


class Planted:
    """Losses that an update of a task moves by set shares: each task has one weight, whose steps are counted."""

    def __init__(self, names=NAMES, **how):
        self.weights = [torch.nn.Parameter(torch.zeros(1)) for _ in EFFECTS]
        self.groups = SelectiveGroups(torch.optim.SGD(self.weights, lr=1.0), tasks=names, **how)

    def closure(self):
        steps = torch.stack([weight.detach()[0] for weight in self.weights])
        logs = steps @ torch.log1p(-torch.from_numpy(EFFECTS)).float()
        # The weight of a task moves by one when its loss is passed back, and its value is the planted one.
        return torch.stack([torch.exp(logs[k]) - (self.weights[k] - self.weights[k].detach())[0] for k in range(len(logs))])

    def train(self, batches):
        for _ in range(batches):
            self.groups.step(self.closure)
        return self.groups


def test_rows_receive_and_columns_give():
    affinity = tracked(Planted(warmup=1000).train(400))
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(affinity.values[off], EFFECTS.T[off], atol=0.012)
    assert affinity["poor", "rich"] == pytest.approx(0.05, abs=0.012)
    assert affinity["odd", "poor"] < 0 < affinity["poor", "odd"]


def test_it_is_the_transpose_of_what_the_step_holds():
    groups = Planted(warmup=1000).train(20)
    affinity = tracked(groups)
    np.testing.assert_array_equal(affinity.values, groups.affinity.T)
    assert affinity.tasks == NAMES
    assert (affinity.measure, affinity.zero, affinity.higher_is_better, affinity.has_own) == ("selective", 0.0, True, False)
    assert not affinity.is_symmetric


@pytest.mark.parametrize("compat", [None, "official"])
def test_what_was_never_seen_is_nan_and_is_counted(compat):
    # Of three updates of a batch the last goes unmeasured: its source cannot have been seen.
    groups = Planted(warmup=1000, options=SelectiveOptions(compat=compat)).train(1)
    affinity, counts = tracked(groups), groups.observations.T
    off = ~np.eye(3, dtype=bool)
    assert (counts[off] == 0).any()
    np.testing.assert_array_equal(np.isnan(affinity.values), counts == 0)
    assert any(f"{(counts[off] == 0).sum()} of 6 pairs were never seen" in note for note in affinity.notes)
    if compat == "official":
        assert (groups.affinity.T[counts == 0] == 0).all()
    with pytest.raises(DataError, match="measure or fill them first"):
        select(affinity, 2)
    assert len(select(affinity.filled(), 2).tasks) == 3


def test_counts_include_what_waits_and_change_nothing():
    groups = Planted(warmup=1000).train(7)
    before = groups.affinity
    counts = groups.observations
    # Two of three updates of a batch are seen, each by all three tasks.
    assert counts.sum() == 7 * 2 * 3
    np.testing.assert_array_equal(groups.affinity, before)
    groups._tracker.settle()
    np.testing.assert_array_equal(groups.observations, counts)
    assert f"each pair was seen {counts[~np.eye(3, dtype=bool)].min()} to" in tracked(groups).notes[0]


def test_names_are_given_where_the_step_has_none():
    groups = Planted(names=None, warmup=1000).train(5)
    assert groups.names == [0, 1, 2]
    assert tracked(groups).tasks == ["task 1", "task 2", "task 3"]
    assert tracked(groups, NAMES).tasks == NAMES
    with pytest.raises(DataError, match=r"shape \(3, 3\) for 2 tasks"):
        tracked(groups, ["a", "b"])


def test_nothing_seen_and_one_task_are_refused():
    with pytest.raises(DataError, match="has seen 0 tasks"):
        tracked(SelectiveGroups(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), tasks=["a", "b"]))
    weight = torch.nn.Parameter(torch.ones(1))
    one = SelectiveGroups(torch.optim.SGD([weight], lr=0.1), tasks=["a"])
    one.step(weight.square)
    with pytest.raises(DataError, match="has seen 1 tasks"):
        tracked(one)


def test_groups_of_a_fit_become_an_affinity_that_prefers_kin():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 6))
    labels = np.stack([X[:, 0], X[:, 0] + 0.1 * X[:, 2], X[:, 1], X[:, 1] + 0.1 * X[:, 3]], axis=1)
    data = TaskData.shared_rows(X, labels, ["a1", "a2", "b1", "b2"])
    kept = []

    def update(optimizer, fabric):
        kept.append(SelectiveGroups(optimizer, fabric, warmup=1000, options=SelectiveOptions()))
        return kept[-1]

    torch.manual_seed(0)
    net, options = SharedBottom(6, data.tasks, (16,)), FitOptions(max_steps=60, learning_rate=3e-3, accelerator="cpu")
    fit(net, data, data, options=options, update=update)
    affinity = tracked(kept[0], [task.name for task in data.tasks])
    assert affinity["a1", "a2"] > affinity["a1", "b1"]
    assert affinity["b2", "b1"] > affinity["b2", "a1"]
    assert set(select(affinity, 2).sets) == {("a1", "a2"), ("b1", "b2")}
