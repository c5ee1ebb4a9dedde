import numpy as np
import pytest
import torch
from torch.nn import functional

from taskloom.deep._losses import OutputColumns, TaskLosses
from taskloom.tasks import Task

TASKS = [
    Task("amount"),
    Task("ill", "binary"),
    Task("grade", "multiclass", classes=(0, 1, 2)),
    Task("cost"),
    Task("stage", "multiclass", classes=(0, 1, 2, 3)),
]


def _labels(rng, n):
    y = np.column_stack(
        [rng.normal(size=n), rng.random(n) > 0.5, rng.integers(0, 3, n), rng.normal(size=n), rng.integers(0, 4, n)]
    )
    y[rng.random(y.shape) < 0.3] = np.nan
    return torch.tensor(y)


def _slow_twin(outputs, y):
    """One task at a time with torch's own losses, labelled rows only."""
    columns = OutputColumns(TASKS)
    means = []
    for t, task in enumerate(TASKS):
        rows = ~y[:, t].isnan()
        out, label = outputs[rows, columns.slices[t]], y[rows, t]
        if task.kind == "regression":
            means.append(functional.mse_loss(out[:, 0], label))
        elif task.kind == "binary":
            means.append(functional.binary_cross_entropy_with_logits(out[:, 0], label))
        else:
            means.append(functional.cross_entropy(out, label.long()))
    return torch.stack(means)


@pytest.mark.parametrize("scale", [1e-10, 1.0, 30.0])
def test_shared_rows_equal_torchs_losses_and_gradients(scale):
    rng = np.random.default_rng(0)
    y = _labels(rng, 50)
    outputs = (scale * torch.randn(50, OutputColumns(TASKS).total, dtype=torch.float64)).requires_grad_()
    ours = TaskLosses(TASKS).means(OutputColumns(TASKS).by_task(outputs), y.T)
    theirs = _slow_twin(outputs, y)
    torch.testing.assert_close(ours, theirs)
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    (one,) = torch.autograd.grad((weights * ours).sum(), outputs, retain_graph=True)
    (two,) = torch.autograd.grad((weights * theirs).sum(), outputs)
    torch.testing.assert_close(one, two)


def test_own_rows_see_only_their_tasks_outputs():
    rng = np.random.default_rng(1)
    K, B = len(TASKS), 7
    outputs = torch.randn(K, B, OutputColumns(TASKS).total, dtype=torch.float64)
    y = _labels(rng, K * B)
    labels = torch.stack([y[t * B : (t + 1) * B, t] for t in range(K)])
    ours = TaskLosses(TASKS).means(OutputColumns(TASKS).own(outputs), labels)
    for t in range(K):
        alone = torch.full((B, K), torch.nan, dtype=torch.float64)
        alone[:, t] = labels[t]
        shared = TaskLosses(TASKS).means(OutputColumns(TASKS).by_task(outputs[t]), alone.T)
        torch.testing.assert_close(ours[t], shared[t])


def test_an_absent_task_is_nan_and_gives_no_gradient():
    outputs = torch.randn(2, 4, 1, requires_grad=True)
    labels = torch.stack([torch.zeros(4), torch.full((4,), torch.nan)])
    losses = TaskLosses(TASKS[:2]).means(outputs, labels)
    assert losses[1].isnan()
    losses.nansum().backward()
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()
    assert not outputs.grad[1].any()


def test_losses_are_single_precision_whatever_the_outputs():
    losses = TaskLosses(TASKS[:1]).means(torch.ones(1, 3, 1, dtype=torch.bfloat16), torch.zeros(1, 3))
    assert losses.dtype == torch.float32
