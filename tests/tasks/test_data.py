from itertools import pairwise

import numpy as np
import pytest

from taskloom.tasks import DataError, Task, TaskData, load_diabetes_tasks, load_digits_tasks


@pytest.fixture
def shared():
    y = np.array([[1.0, np.nan], [2.0, 5.0], [np.nan, 6.0], [4.0, 7.0]])
    return TaskData.shared_rows(np.arange(8.0).reshape(4, 2), y, ["a", "b"])


@pytest.fixture
def own():
    return TaskData.own_rows([(np.ones((2, 3)), [0.0, 1.0]), (np.zeros((3, 3)), [2.0, 3.0, 4.0])], ["a", "b"])


def test_both_shapes_answer_alike(shared, own):
    assert shared.rows(0).tolist() == [0, 1, 3]
    assert shared.labels(1).tolist() == [5, 6, 7]
    assert own.rows(1).tolist() == [2, 3, 4]
    assert own.labels(1).tolist() == [2, 3, 4]
    assert (shared.is_shared, own.is_shared) == (True, False)


def test_take_keeps_rows_and_owners(shared, own):
    assert shared.take(np.array([3, 1])).labels(0).tolist() == [4, 2]
    part = own.take(np.array([1, 4]))
    assert (part.labels(0).tolist(), part.labels(1).tolist()) == ([1], [4])
    assert part.X.tolist() == [[1, 1, 1], [0, 0, 0]]


def test_digest_tells_data_apart(shared, own):
    digests = {shared.digest(), own.digest(), shared.take(np.arange(3)).digest()}
    changed = TaskData(shared.tasks, shared.features, np.where(shared.y == 5, 5.5, shared.y))
    renamed = TaskData((Task("a"), Task("c")), shared.features, shared.y)
    assert len(digests | {changed.digest(), renamed.digest()}) == 5
    assert shared.digest() == shared.take(np.arange(4)).digest()


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([[1.0, 2.0], [1.0, 3.0]], "`a` is constant"),
        ([[np.nan, 2.0], [np.nan, 3.0]], "`a` is missing in every row"),
        ([[np.inf, 2.0], [1.0, 3.0]], "`a` holds an infinite value"),
        ([[1.0, 2.0, 3.0], [1.0, 3.0, 3.0]], "2 given for 3 columns"),
        ([1.0, 2.0], "need \\(n, K\\)"),
        ([[1.0, 2.0]], "need \\(2, 2\\)"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(y, message):
    with pytest.raises(DataError, match=message):
        TaskData.shared_rows(np.eye(2), y, ["a", "b"])


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="feature shapes"):
        TaskData.own_rows([(np.eye(2), [0, 1]), (np.eye(3), [0, 1, 2])])
    with pytest.raises(DataError, match="y must be \\(2,\\)"):
        TaskData.own_rows([(np.eye(2), [0, 1, 2])])
    with pytest.raises(DataError, match=r"not codes 0 \.\.\. 1 .*such as 7"):
        TaskData.own_rows([(np.eye(2), [0, 7])], [Task("a", "binary")])
    with pytest.raises(DataError, match=r"`parts\[1\]` is a ndarray; give a pair"):
        TaskData.own_rows([(np.eye(2), [0, 1]), np.eye(3)])
    with pytest.raises(DataError, match="give the same names in one order"):
        TaskData.own_rows({"a": (np.eye(2), [0, 1])}, ["b"])


def test_parts_may_be_given_by_name():
    parts = {"a": (np.eye(2), [0, 1]), "b": (np.ones((3, 2)), [1, 2, 3])}
    plain = TaskData.own_rows(list(parts.values()), ["a", "b"])
    assert TaskData.own_rows(parts).digest() == TaskData.own_rows(parts, [Task("a"), Task("b")]).digest() == plain.digest()


def test_texts_are_refused_with_the_remedy():
    tasks = [Task("a", "binary", classes=("no", "yes"))]
    with pytest.raises(DataError, match=r"`Y`: labels that are no numbers .*'no'.* give a class by its code"):
        TaskData.shared_rows(np.eye(2), [["no"], ["yes"]], tasks)
    with pytest.raises(DataError, match=r"`parts\[0\]`: labels that are no numbers"):
        TaskData.own_rows([(np.eye(2), ["no", "yes"])], tasks)
    with pytest.raises(DataError, match=r"`X`: features that are no numbers .*encode them"):
        TaskData.shared_rows([["red"], ["blue"]], [[0], [1]], tasks)


def test_digits_pairs_and_one_vs_rest_hold_the_same_images():
    pairs, rest = load_digits_tasks(), load_digits_tasks("one_vs_rest")
    assert [task.name for task in pairs.tasks] == ["0 or 9", "1 or 8", "2 or 7", "3 or 6", "4 or 5"]
    assert np.array_equal(pairs.X, rest.X)
    # The second digit of a pair is code 1: its images are those of its one-vs-rest task.
    for t, digit in enumerate((9, 8, 7, 6, 5)):
        assert np.array_equal(pairs.rows(t)[pairs.labels(t) == 1], np.flatnonzero(rest.y[:, digit]))


def test_diabetes_shapes_hold_the_same_patients():
    outcomes, groups = load_diabetes_tasks(), load_diabetes_tasks("age_groups")
    assert np.array_equal(outcomes.y[:, -1], groups.y)
    ages = groups.X[:, 0]
    spans = [(ages[groups.rows(t)].min(), ages[groups.rows(t)].max()) for t in range(groups.n_tasks)]
    assert all(before[1] < after[0] for before, after in pairwise(spans))
    with pytest.raises(ValueError, match="did you mean `age_groups`"):
        load_diabetes_tasks("age_group")
