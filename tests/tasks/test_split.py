import numpy as np
import pytest

from taskloom.tasks import DataError, OptionError, Task, TaskData, load_diabetes_tasks, load_digits_tasks, split_rows

SHAPES = {
    "own": load_digits_tasks,
    "shared": lambda: load_digits_tasks("one_vs_rest"),
    "regression": load_diabetes_tasks,
    "own regression": lambda: load_diabetes_tasks("age_groups"),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_parts_are_disjoint_whole_and_in_proportion(shape, seed):
    data = SHAPES[shape]()
    split = split_rows(data, seed)
    together = np.concatenate([split.train, split.validation, split.test])
    assert np.array_equal(np.sort(together), np.arange(data.n_rows))
    for rows, share in zip((split.train, split.validation, split.test), (0.6, 0.2, 0.2), strict=True):
        part = data.take(rows)
        for t, task in enumerate(data.tasks):
            for code in range(len(task.classes)) if task.classes else [None]:
                whole = len(data.labels(t)) if code is None else (data.labels(t) == code).sum()
                found = len(part.labels(t)) if code is None else (part.labels(t) == code).sum()
                assert abs(found - share * whole) <= 3, (task.name, code)


def test_same_seed_same_split_and_another_seed_another():
    data = load_digits_tasks("one_vs_rest")
    first, again, other = split_rows(data, 0), split_rows(data, 0), split_rows(data, 1)
    assert np.array_equal(first.test, again.test)
    assert not np.array_equal(first.test, other.test)


def test_rare_classes_and_missing_labels_reach_every_part():
    rng = np.random.default_rng(0)
    y = np.full((300, 4), np.nan)
    for t in range(4):
        seen = rng.choice(300, size=60, replace=False)
        y[seen, t] = 0
        y[seen[:6], t] = 1
    data = TaskData.shared_rows(rng.normal(size=(300, 2)), y, [Task(f"t{t}", "binary") for t in range(4)])
    for seed in range(10):
        split = split_rows(data, seed)
        for rows in (split.train, split.validation, split.test):
            part = data.take(rows)
            assert all(0 < part.labels(t).sum() < len(part.labels(t)) for t in range(4))


def test_a_part_may_be_left_out():
    split = split_rows(load_digits_tasks(), 0, (0.8, 0.2, 0.0))
    assert len(split.test) == 0
    assert len(split.train) + len(split.validation) == 1797


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (1.2, -0.1, -0.1), (1.0, 0.0, 0.0), (0.5, 0.5)])
def test_impossible_fractions_are_refused(fractions):
    with pytest.raises(OptionError, match="sum to 1"):
        split_rows(load_digits_tasks(), 0, fractions)


def test_too_few_rows_are_named():
    small = TaskData.own_rows([(np.eye(20), np.arange(20.0)), (np.ones((4, 20)), [1.0, 2.0, 3.0, 4.0])], ["big", "small"])
    with pytest.raises(DataError, match="task `small` has 4 labelled rows; a split into 3 parts needs 6"):
        split_rows(small, 0)
    rare = TaskData.own_rows([(np.eye(20), [1.0, 1.0] + [0.0] * 18)], [Task("rare", "binary", ("no", "yes"))])
    with pytest.raises(DataError, match="class 'yes' of task `rare` has 2 labelled rows"):
        split_rows(rare, 0)


def test_the_least_that_can_be_split_is_split():
    data = TaskData.own_rows([(np.eye(6), np.arange(6.0)), (np.eye(6), np.arange(6.0))])
    split = split_rows(data, 0)
    assert all(len(data.take(rows).labels(t)) == 2 for rows in (split.train, split.validation, split.test) for t in (0, 1))


def test_all_tasks_that_cannot_be_split_are_named_with_the_option_that_leaves_them_out():
    def site(n):
        return np.ones((n, 2)), np.arange(float(n))

    short = TaskData.own_rows([site(20), site(3), site(4), site(2)], ["big", "T1", "T2, north", "T3"])
    with pytest.raises(DataError) as found:
        split_rows(short, 0)
    assert "task `T1` has 3 labelled rows; a split into 3 parts needs 6, and 2 more tasks" in str(found.value)
    assert """--skip-tasks 'T1,"T2, north",T3'""" in str(found.value)
    labels = [[0.0] * 10 + [1.0] * n for n in (6, 1, 2)]
    rare = TaskData.own_rows(
        [(np.ones((len(y), 1)), y) for y in labels], [Task(name, "binary", ("no", "yes")) for name in "abc"]
    )
    with pytest.raises(DataError, match=r"class 'yes' of task `b` has 1 labelled rows.*--skip-tasks b,c`"):
        split_rows(rare, 0)


def test_all_constant_tasks_are_named_with_the_option_that_leaves_them_out():
    parts = [(np.ones((len(y), 1)), y) for y in ([1.0, 2.0], [1.0, 1.0], [np.nan, np.nan])]
    with pytest.raises(DataError, match=r"`b` is constant .* and 1 more task cannot be used.*--skip-tasks b,c`"):
        TaskData.own_rows(parts, ["a", "b", "c"])
