import pytest

from taskloom.tasks import OptionError, Task, TaskData, TaskloomError, UnknownNameError, get_metric, metric_names


def test_kinds_have_losses_metrics_and_widths():
    tasks = [Task("a"), Task("b", "binary"), Task("c", "multiclass", classes=("x", "y", "z"))]
    assert [(t.loss, t.metric, t.n_outputs) for t in tasks] == [
        ("squared", "r2", 1),
        ("logistic", "auc", 1),
        ("cross_entropy", "accuracy", 3),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "regresion"}, "did you mean `regression`"),
        ({"metric": "acuracy"}, "did you mean `accuracy`"),
        ({"metric": "auc"}, "cannot score task `t` of kind regression"),
        ({"kind": "multiclass", "classes": (0, 1)}, "three or more"),
        ({"kind": "binary", "classes": (0, 1, 2)}, "needs two"),
        ({"loss": "logistic"}, "no loss for a regression task named `logistic`"),
    ],
)
def test_impossible_tasks_are_refused_with_the_remedy(arguments, message):
    with pytest.raises(TaskloomError, match=message):
        Task("t", **arguments)


def test_two_tasks_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two tasks are named `a`"):
        TaskData.shared_rows([[1.0], [2.0]], [[1.0, 2.0], [2.0, 1.0]], tasks=["a", "a"])


def test_gain_is_positive_when_better_whatever_the_direction():
    for name in metric_names():
        metric = get_metric(name)
        better, worse = (1.0, 0.5) if metric.higher_is_better else (0.5, 1.0)
        assert metric.gain(better, worse) > 0 > metric.gain(worse, better)


def test_every_metric_prefers_the_truth():
    import numpy as np

    rng = np.random.default_rng(0)
    for name in metric_names():
        metric = get_metric(name)
        labels = rng.normal(size=50) if "regression" in metric.kinds else (rng.random(50) > 0.5).astype(float)
        noise = rng.permutation(labels)
        assert metric.gain(metric.score(labels, labels), metric.score(labels, noise)) > 0, name


def test_unknown_metric_names_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean `rmse`"):
        get_metric("rsme")


def test_task_survives_json():
    import dataclasses
    import json

    task = Task("c", "multiclass", classes=("x", 2, 3.5), metric="log_loss")
    assert Task.from_json(json.loads(json.dumps(dataclasses.asdict(task)))) == task
    assert OptionError.__mro__[1] is TaskloomError
