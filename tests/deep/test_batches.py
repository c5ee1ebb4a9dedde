import numpy as np
import pytest
import torch

from taskloom.deep._batches import RowDealer, TaskTensors
from taskloom.tasks import DataError, TaskData


@pytest.mark.parametrize("size", [1, 3, 64, 100, 5000])
def test_every_pool_is_dealt_out_whole_before_a_row_comes_again(size):
    dealer = RowDealer([np.arange(size), np.arange(10, 17)], batch_size=8, seed=3)
    dealt = torch.cat([dealer.rows(step) for step in range(200)], dim=1)
    for row, pool in zip(dealt.numpy(), dealer.pools, strict=True):
        whole = len(row) // len(pool) * len(pool)
        for start in range(0, whole, len(pool)):
            assert sorted(row[start : start + len(pool)]) == sorted(pool)


def test_rows_follow_from_seed_and_step_alone():
    pools = [np.arange(100), np.arange(30)]
    forward = RowDealer(pools, 16, seed=0)
    rows = [forward.rows(step).clone() for step in range(150)]
    jumping = RowDealer(pools, 16, seed=0)
    for step in (149, 3, 77, 64, 63):
        assert torch.equal(jumping.rows(step), rows[step])
    assert not torch.equal(RowDealer(pools, 16, seed=1).rows(0), rows[0])


def test_a_pool_is_dealt_alike_in_any_company():
    pools = [np.arange(50), np.arange(40), np.arange(60)]
    together, alone = RowDealer(pools, 8, seed=0), RowDealer([pools[1]], 8, seed=0, keys=[1])
    for step in range(100):
        assert torch.equal(together.rows(step)[1], alone.rows(step)[0])


def test_padding_has_no_label_and_every_label_comes_once():
    data = TaskData.own_rows([(np.ones((3, 2)), [1.0, 2.0, 3.0]), (np.ones((5, 2)), [4.0, 5.0, 6.0, 7.0, 8.0])])
    tensors = TaskTensors(data, torch.float64, torch.device("cpu"))
    for repeats in (1, 2):
        labels = torch.cat([y for _, y in tensors.all_own(torch.arange(2 * repeats))], dim=1)
        assert labels.shape[0] == 2 * repeats
        assert sorted(labels[~labels.isnan()].tolist()) == sorted([1.0, 2, 3, 4, 5, 6, 7, 8] * repeats)


def test_chosen_nets_see_their_tasks_rows(shared_parts, own_parts):
    for data in (shared_parts[0], own_parts[0]):
        K = data.n_tasks
        tensors = TaskTensors(data, torch.float64, torch.device("cpu"))
        rows = RowDealer(tensors.pools(), 4, seed=0).rows(0)
        everyone, some = torch.arange(2 * K), torch.tensor([1, K, 2 * K - 1])
        x, labels = tensors.own(rows, everyone)
        few_x, few_labels = tensors.own(rows, some)
        assert torch.equal(few_x, x[some])
        assert torch.equal(few_labels, labels[some])
        assert torch.equal(torch.cat([y for _, y in tensors.all_own(some)], 1).nansum(1),
                           torch.cat([y for _, y in tensors.all_own(everyone)], 1).nansum(1)[some])  # fmt: skip


def test_features_that_are_not_finite_are_refused():
    data = TaskData.shared_rows([[1.0], [np.nan]], [[1.0], [2.0]])
    with pytest.raises(DataError, match="encode it first"):
        TaskTensors(data, torch.float32, torch.device("cpu"))
