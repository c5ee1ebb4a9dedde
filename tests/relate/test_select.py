"""Choosing groups: solvers against each other and against trying everything, and what is refused."""

import itertools
import json
import math

import numpy as np
import pytest

from taskloom.relate._affinity import Affinity
from taskloom.relate._dynamic_programme import best_partition, best_supersets, worth_of_table
from taskloom.relate._group_training import as_members
from taskloom.relate._groups import Groups
from taskloom.relate._prices import Candidates, judge
from taskloom.relate._select import select
from taskloom.relate._surrogate import fit_surrogate
from taskloom.relate._values import GroupGains, all_groups, group_gains, mean_gains
from taskloom.tasks import DataError, OptionError, UnknownNameError


def best_by_trying(table, budget, costs, overlap):
    """The greatest value over all sets of groups; -inf where none serves every task."""
    values = np.where(np.isnan(table.gains), -np.inf, table.gains)
    most = min(int(budget / costs.min() + 1e-9), table.n_tasks)
    best = -np.inf
    for n in range(1, most + 1):
        chosen = np.array(list(itertools.combinations(range(table.n_groups), n)))
        fit = costs[chosen].sum(axis=1) <= budget + 1e-12
        if not overlap:
            fit &= (table.members[chosen].sum(axis=1) == 1).all(axis=1)
        if fit.any():
            best = max(best, values[chosen[fit]].max(axis=1).sum(axis=1).max())
    return best


def random_affinity(seed, K=None, **fields):
    rng = np.random.default_rng(seed)
    K = K or int(rng.integers(2, 6))
    return Affinity(rng.normal(size=(K, K)), [f"t{i}" for i in range(K)], **fields)


def check(groups, affinity, budget, overlap, costs=None):
    """What a choice says of itself is so."""
    members = np.array([[task in each for task in groups.tasks] for each in groups.sets])
    values = group_gains(affinity, members).gains
    for i, task in enumerate(groups.tasks):
        assert task in groups.serving(task)
        assert groups.values[task] == pytest.approx(values[groups.serves[task], i])
        assert groups.values[task] == pytest.approx(np.nanmax(values[:, i])), "each task is served by its best group"
    assert groups.cost <= budget + 1e-9
    assert groups.cost == pytest.approx(sum(1.0 if costs is None else costs(each) for each in groups.sets))
    if not overlap:
        assert (members.sum(axis=0) == 1).all()


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_programme_milp_and_trying_everything_agree(seed, overlap):
    fields = [{}, {"has_own": True}, {"zero": 0.0}, {"higher_is_better": False, "zero": 0.5}][seed % 4]
    affinity = random_affinity(seed, **fields)
    table = group_gains(affinity)
    for budget in (1, 2, 3):
        expected = best_by_trying(table, budget, np.ones(table.n_groups), overlap)
        for what, solver in itertools.product((affinity, table), ("dp", "milp")):
            groups = select(what, budget, overlap=overlap, solver=solver)
            assert groups.value == pytest.approx(expected, abs=1e-9), (solver, budget)
            assert groups.gap < 1e-6
            assert groups.exact
            check(groups, affinity, budget, overlap)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_unequal_costs_are_kept_to_the_optimum(seed, overlap):
    affinity = random_affinity(seed, K=2 + seed % 3, has_own=bool(seed % 2))
    weights = dict(zip(affinity.tasks, np.random.default_rng(seed).uniform(0.3, 1, affinity.n_tasks), strict=True))
    table = group_gains(affinity)

    def costs(names):
        return sum(weights[name] for name in names) ** 0.7

    each = np.array([costs(tuple(np.array(affinity.tasks)[row])) for row in table.members])
    for budget in (1.8, 2.6):
        expected = best_by_trying(table, budget, each, overlap)
        if expected == -np.inf:
            with pytest.raises(OptionError, match="`budget`"):
                select(affinity, budget, costs, overlap)
            continue
        for what, given in ((affinity, costs), (table, each), (table, costs)):
            groups = select(what, budget, given, overlap)
            assert groups.value == pytest.approx(expected, abs=1e-7)
            assert groups.method == "milp"
            check(groups, affinity, budget, overlap, costs)


def test_six_tasks_agree_with_trying_everything():
    for seed in range(2):
        affinity = random_affinity(seed, K=6)
        table = group_gains(affinity)
        expected = best_by_trying(table, 3, np.ones(table.n_groups), True)
        for solver in ("dp", "milp", "pool"):
            assert select(affinity, 3, solver=solver).value == pytest.approx(expected)


@pytest.mark.parametrize("overlap", [True, False])
def test_programme_and_milp_agree_on_nine_tasks_at_every_budget(overlap):
    affinity = random_affinity(5, K=9)
    values = [select(affinity, budget, overlap=overlap, solver="dp").value for budget in range(1, 11)]
    assert values == sorted(values), "more budget never hurts"
    for budget in (2, 4, 7):
        assert select(affinity, budget, overlap=overlap, solver="milp").value == pytest.approx(values[budget - 1])


def test_the_best_superset_by_sorting_equals_the_search_of_all():
    affinity = random_affinity(1, K=7)
    gains = affinity.gains.copy()
    np.fill_diagonal(gains, 0.0)
    alone = np.random.default_rng(2).normal(size=7)
    sets = all_groups(7)
    worth, groups = best_supersets(gains, alone, sets)
    listed = np.full((1 << 7, 7), -np.inf)
    listed[1:] = mean_gains(gains, alone, sets)
    np.testing.assert_allclose(worth, worth_of_table(listed, True)[1:])
    assert (groups >= sets).all()
    np.testing.assert_allclose(np.where(sets, mean_gains(gains, alone, groups), 0.0).sum(axis=1), worth)


def test_worth_of_a_table_beyond_one_leaf_equals_a_plain_loop():
    K = 10
    rng = np.random.default_rng(0)
    values = np.where(rng.random((1 << K, K)) < 0.9, rng.normal(size=(1 << K, K)), -np.inf)
    numbers = np.arange(1 << K)
    values[(numbers[:, None] >> np.arange(K) & 1) == 0] = -np.inf
    h = worth_of_table(values, True)
    for T in rng.integers(1, 1 << K, 40):
        supersets = numbers[(numbers & T) == T]
        serves = np.flatnonzero(T >> np.arange(K) & 1)
        assert h[T] == pytest.approx(values[np.ix_(supersets, serves)].sum(axis=1).max())


def test_best_partition_covers_every_task_once_in_at_most_b_blocks():
    h = np.random.default_rng(0).normal(size=1 << 11)
    before = -np.inf
    for b in range(1, 12):
        blocks = best_partition(h, b)
        assert sum(blocks) == np.bitwise_or.reduce(blocks) == (1 << 11) - 1
        assert len(blocks) <= b
        assert h[blocks].sum() >= before - 1e-12
        before = h[blocks].sum()


def test_prices_of_any_kind_bound_every_choice():
    affinity = random_affinity(3, K=5, has_own=True)
    table = group_gains(affinity)
    rng = np.random.default_rng(0)
    costs = rng.uniform(0.5, 1.5, table.n_groups)
    for overlap in (True, False):
        given = Candidates(np.where(table.members, table.gains, -np.inf), table.members, costs, 2.0, overlap)
        best = best_by_trying(table, 2.0, costs, overlap)
        for _ in range(20):
            assert judge(given, rng.normal(size=5)).bound >= best - 1e-9


def test_the_pool_is_within_half_a_percent_of_the_optimum_at_twelve_tasks():
    for noise, overlap in ((0.1, True), (0.3, True), (0.3, False), (1.0, True)):
        ratios = []
        for seed in range(4):
            affinity = planted(12, 4, noise, seed)
            exact, pool = select(affinity, 4, overlap=overlap), select(affinity, 4, overlap=overlap, solver="pool")
            assert pool.value <= exact.value + 1e-9
            assert not pool.exact
            ratios.append(pool.value / exact.value)
        assert np.mean(ratios) >= 0.995


def planted(K, n, noise, seed):
    rng = np.random.default_rng(seed)
    of = np.arange(K) % n
    return Affinity(np.equal.outer(of, of) * 0.5 + noise * rng.normal(size=(K, K)), [f"t{i}" for i in range(K)])


def test_sixty_tasks_of_planted_groups_are_chosen_as_planted():
    groups = select(planted(60, 6, 0.05, 0), 6)
    assert groups.method == "pool"
    assert groups.gap < 1e-6
    assert {frozenset(groups.served(place)) for place in range(6)} == {
        frozenset(f"t{i}" for i in range(first, 60, 6)) for first in range(6)
    }


def test_too_little_time_gives_a_choice_with_its_gap():
    affinity = planted(40, 5, 1.0, 0)
    hasty, best = select(affinity, 4, time_limit=1e-9), select(affinity, 4)
    assert hasty.value <= best.value + 1e-9
    assert hasty.bound >= hasty.value
    check(hasty, affinity, 4, overlap=True)


def test_costs_reach_the_pool_too():
    def costs(names):
        return 1 + 0.1 * len(names)

    groups = select(planted(20, 4, 0.2, 0), 6.0, costs)
    assert groups.method == "pool"
    assert groups.cost <= 6
    assert groups.cost == pytest.approx(sum(costs(each) for each in groups.sets))


def test_a_task_is_left_alone_only_where_that_has_a_worth():
    hurt = [[0, -1, -1], [1, 0, 1], [1, 1, 0]]
    assert min(map(len, select(np.array(hurt), 3).sets)) == 2
    measured = Affinity(hurt, ["a", "b", "c"], zero=0.0)
    assert select(measured, 3).serving("a") == ("a",)
    own = Affinity(np.array(hurt) + np.diag([5, 5, 5]), ["a", "b", "c"], has_own=True)
    assert sorted(map(len, select(own, 3).sets)) == [1, 1, 1]


def test_one_task_and_one_group_are_trivial():
    assert select(np.zeros((1, 1)), 3).sets == (("task 1",),)
    assert select(random_affinity(0, K=4), 1).sets == (("t0", "t1", "t2", "t3"),)


def test_distances_are_turned_into_gains():
    near = np.abs(np.subtract.outer([0, 1, 10, 11], [0, 1, 10, 11])).astype(float)
    groups = select(Affinity(near, list("abcd"), higher_is_better=False), 2)
    assert groups.sets == (("a", "b"), ("c", "d"))


def test_a_group_that_brings_nothing_is_not_bought():
    groups = select(np.kron(np.eye(2), np.ones((2, 2))), 4)
    assert len(groups.sets) == 2


def test_a_table_with_the_same_set_twice_takes_each_at_its_price():
    members = np.array([[1, 0], [1, 0], [0, 1], [1, 1]])
    gains = np.array([[0.5, 0], [0.9, 0], [0, 0.4], [0.1, 0.2]])
    table = GroupGains(members, gains, ["a", "b"], np.array([0.5, 1, 0.5, 1]))
    assert select(table, 1).values == {"a": 0.5, "b": 0.4}
    assert select(table, 1.5).costs == (1.0, 0.5)
    with pytest.raises(OptionError, match="different groups of equal cost"):
        select(table, 1, solver="dp")


def test_what_cannot_be_solved_is_refused_by_name():
    A = np.zeros((3, 3))
    broken = A.copy()
    broken[0, 2] = np.nan
    with pytest.raises(DataError, match=r"`affinity` of 'task 1' from 'task 3' is NaN \(1 pairs are\)"):
        select(broken, 2)
    with pytest.raises(DataError, match="no own gain for 'b'"):
        select(Affinity(np.diag([0, np.nan]), ["a", "b"], has_own=True), 2)
    with pytest.raises(DataError, match="need \\(K, K\\)"):
        select(np.zeros((2, 3)), 2)
    for budget in (0, -1, math.nan, math.inf, True, "2"):
        with pytest.raises(OptionError, match="`budget`="):
            select(A, budget)
    with pytest.raises(OptionError, match="`time_limit`=0"):
        select(A, 1, time_limit=0)
    with pytest.raises(OptionError, match="buys no group, each costs 1"):
        select(A, 0.5)
    with pytest.raises(UnknownNameError, match="did you mean `milp`"):
        select(A, 1, solver="mlp")
    with pytest.raises(OptionError, match="`costs` is a list"):
        select(A, 1, [1.0])
    for cost, shown in ((-1.0, "-1.0"), (math.inf, "inf"), (None, "None"), ("2", "'2'")):
        with pytest.raises(OptionError, match=f"`costs` gives {shown} for the group task 1"):
            select(A, 1, lambda _names, cost=cost: cost)
    with pytest.raises(OptionError, match="knows no `costs`"):
        select(A, 1, lambda _names: 1.0, solver="dp")
    with pytest.raises(OptionError, match="buys no group for one of the tasks"):
        select(A, 1, lambda _names: 2.0)
    for solver in ("dp", "milp"):
        with pytest.raises(OptionError, match="use 'pool' above"):
            select(np.zeros((19, 19)), 1, solver=solver)


def test_tables_that_do_not_serve_all_tasks_are_refused_by_name():
    table = GroupGains(np.array([[1, 1, 0], [0, 0, 1]]), np.ones((2, 3)))
    for solver in ("dp", "milp"):
        with pytest.raises(OptionError, match="`budget`=1 buys no groups"):
            select(table, 1, solver=solver)
    with pytest.raises(OptionError, match="a table has its own"):
        select(table, 2, solver="pool")
    with pytest.raises(OptionError, match="need \\(2,\\) positive numbers"):
        select(table, 2, [1.0, 1.0, 1.0])
    ones = np.ones((1, 2))
    for members, gains, fields, message in (
        (np.ones(2), np.ones(2), {}, "need \\(G, K\\), true where"),
        (ones, np.ones((1, 3)), {}, "need \\(G, K\\) for both"),
        (ones, ones, {"tasks": ["a", "a"]}, "1 different names; need 2"),
        (np.array([[1, 1], [0, 0]]), np.ones((2, 2)), {}, "group 1 of `members` is empty"),
        (ones, np.array([[1, np.inf]]), {}, "'task 2' in group 0 is infinite"),
        (ones, np.array([[1, np.nan]]), {}, "has none for 'task 2'"),
        (ones, ones, {"costs": [0.0]}, "positive numbers"),
    ):
        with pytest.raises(DataError, match=message):
            GroupGains(members, gains, **fields)
    with pytest.raises(OptionError, match="of all groups of 19 tasks"):
        group_gains(Affinity(np.zeros((19, 19)), [str(i) for i in range(19)]))


def test_groups_are_saved_and_read_back(tmp_path):
    for groups in (select(random_affinity(4, K=5), 2), Groups(("a",), (("a",),), {"a": 0}, {"a": math.nan})):
        groups.save(tmp_path / "groups.json")
        again = Groups.load(tmp_path / "groups.json")
        assert repr(again) == repr(groups)
        assert again.to_dict() == groups.to_dict()
    (tmp_path / "other.json").write_text("[1]")
    (tmp_path / "old.json").write_text('{"format": "taskloom groups", "version": 0}')
    saved = json.loads((tmp_path / "groups.json").read_text())
    damaged = {"values": {"a": "x"}, "serves": {"a": "x"}, "bound": "x", "costs": ["x"], "values ": {}}
    for name, value in damaged.items():
        (tmp_path / name).write_text(json.dumps({**saved, name.strip(): value}))
    for name, message in (
        ("missing", "no saved groups"),
        ("other.json", "no saved groups"),
        ("old.json", "of version 1"),
        *((name, "no saved groups") for name in damaged),
    ):
        with pytest.raises(DataError, match=message):
            Groups.load(tmp_path / name)


def test_groups_know_who_helps_and_how_far_they_may_be_from_the_best():
    groups = Groups(("a", "b", "c"), (("a", "b"), ("b", "c")), {"a": 0, "b": 0, "c": 1}, dict.fromkeys("abc", 1.0), "pool", 3.3)
    assert groups.gap == pytest.approx(0.1)
    assert "2 groups of 3 tasks by pool, value 3, at most 10.00% below the best of the candidates" in repr(groups)
    assert "2  c, helped by b" in repr(groups)
    assert math.isnan(groups.cost)
    with pytest.raises(UnknownNameError, match="no task named `d`"):
        groups.serving("d")
    with pytest.raises(DataError, match="holds 'z'"):
        Groups(("a",), (("a", "z"),), {"a": 0}, {"a": 0.0})
    with pytest.raises(DataError, match="gives 'b' no set that holds it"):
        Groups(("a", "b"), (("a",),), {"a": 0, "b": 0}, {"a": 0.0, "b": 0.0})


def test_the_surrogate_finds_linear_gains_again():
    rng = np.random.default_rng(0)
    members = np.array([row for row in all_groups(6) if row.sum() > 1])
    levels, effects = rng.normal(size=6), rng.normal(size=(6, 6)) * (1 - np.eye(6))
    gains = levels + members @ effects.T
    fitted = fit_surrogate(members, gains, strength=1e-6)
    np.testing.assert_allclose(fitted.effects, effects, atol=0.01)
    np.testing.assert_allclose(fitted.predict(members)[members], gains[members], atol=0.1)
    assert np.isnan(fitted.predict(members)[~members]).all()
    chosen = select(fitted.table(tasks=list("abcdef")), 2)
    assert chosen.value == pytest.approx(select(GroupGains(members, gains), 2).value, abs=0.2)
    pairs = fitted.affinity(list("abcdef"))
    assert pairs["a", "b"] == pytest.approx(levels[0] + effects[0, 1], abs=0.05)
    assert pairs.zero is None


def test_a_level_that_every_company_brings_is_part_of_the_gains_of_pairs():
    members = np.array([row for row in all_groups(4) if row.sum() > 1])
    fitted = fit_surrogate(members, np.where(members, 0.5, np.nan))
    names = list("abcd")
    assert select(fitted.affinity(names), 4).value == pytest.approx(2.0)
    assert select(fitted.affinity(names), 4).value == pytest.approx(select(fitted.table(tasks=names), 4).value)
    with_singles = np.concatenate([np.eye(4, dtype=bool), members])
    for lone, value in ((0.0, 2.0), (0.75, 0.0)):
        gains = np.where(with_singles, np.where(with_singles.sum(axis=1) == 1, lone, 0.5)[:, None], np.nan)
        affinity = fit_surrogate(with_singles, gains).affinity(names)
        assert affinity.zero == 0
        assert affinity["a", "b"] == pytest.approx(0.5 - lone)
        assert select(affinity, 4).value == pytest.approx(value)


def test_the_surrogate_takes_groups_of_one_as_they_were_measured():
    members = np.concatenate([np.eye(3), all_groups(3)[[2, 4, 6]]])
    gains = np.where(members, 1.0, np.nan)
    gains[:3] = np.diag([0.5, 0.25, np.nan])
    fitted = fit_surrogate(members, gains)
    alone = np.diag(fitted.predict(np.eye(3)))
    assert alone[:2].tolist() == [0.5, 0.25]
    assert alone[2] == fitted.levels[2]
    assert fitted.predict(np.ones((1, 3))).ravel() == pytest.approx(1.0)


def test_the_surrogate_of_a_task_that_was_never_measured_is_the_mean():
    fitted = fit_surrogate(np.array([[1, 1, 0], [1, 1, 0]]), np.array([[1.0, 3, 0], [1, 3, 0]]))
    assert fitted.predict(np.ones((1, 3)))[0, 2] == pytest.approx(2.0)


def test_the_surrogate_refuses_what_it_cannot_use():
    pair = np.ones((1, 2))
    for members, gains, message in (
        (np.full((1, 2), 0.5), pair, "`memberships` holds other values than true and false"),
        (pair, np.ones((2, 2)), "`gains` has shape"),
        (pair, np.full((1, 2), np.inf), "holds infinity"),
        (np.eye(2), np.eye(2), "none in a group of two or more"),
    ):
        with pytest.raises(DataError, match=message):
            fit_surrogate(members, gains)
    with pytest.raises(OptionError, match="`strength`=0"):
        fit_surrogate(pair, pair, strength=0)
    with pytest.raises(DataError, match="need \\(G, 2\\)"):
        fit_surrogate(pair, pair).predict(np.ones((1, 3)))
    many = fit_surrogate(np.ones((1, 19)), np.ones((1, 19)))
    with pytest.raises(OptionError, match="all groups of 19 tasks"):
        many.table()
    assert many.table(np.ones((1, 19))).n_groups == 1


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("size", [1e4, 1e8, 1e14])
def test_one_gain_far_below_all_others_does_not_blur_them(size, overlap):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        gains = rng.normal(size=(4, 4))
        gains[tuple(rng.choice(4, 2, replace=False))] = -size
        affinity = Affinity(gains, list("abcd"), zero=0.0)
        table = group_gains(affinity)
        costs = 0.5 + 0.25 * table.members.sum(axis=1)
        groups = select(affinity, 2.0, lambda names: 0.5 + 0.25 * len(names), overlap)
        assert groups.value == pytest.approx(best_by_trying(table, 2.0, costs, overlap), abs=1e-7)
        assert groups.gap < 1e-6


@pytest.mark.parametrize(
    ("K", "budget", "costs", "overlap"),
    [
        (24, 3, lambda names: 1.0 if len(names) <= 8 else 50.0, True),
        (24, 3, lambda names: 1.0 if len(names) <= 8 else 50.0, False),
        (20, 40, lambda names: len(names) ** 2, False),
    ],
)
def test_many_tasks_are_served_by_groups_of_the_only_size_that_the_budget_buys(K, budget, costs, overlap):
    groups = select(np.random.default_rng(0).normal(size=(K, K)), budget, costs, overlap, time_limit=5)
    assert groups.cost <= budget
    with pytest.raises(OptionError, match="buys no groups among the candidates"):
        select(np.ones((K, K)), 0.9 * budget, costs, overlap, time_limit=5)


@pytest.mark.parametrize("odd", [np.array([[0.2, 0.3, 0.5]]), np.array([["a", "b", "a"]]), np.array([[0, 1, 2]])])
def test_what_says_not_who_is_in_a_group_is_refused(odd):
    names = ["a", "b", "c"]
    for attempt in (
        lambda: as_members(odd, names),
        lambda: GroupGains(odd, np.zeros((1, 3))),
        lambda: group_gains(Affinity(np.zeros((3, 3)), names), odd),
        lambda: fit_surrogate(odd, np.ones((1, 3))),
    ):
        with pytest.raises(DataError, match="holds other values than true and false"):
            attempt()
    with pytest.raises(DataError, match=r"`members` has shape \(2, 4\); need \(G, 3\)"):
        group_gains(Affinity(np.zeros((3, 3)), names), np.ones((2, 4)))
    with pytest.raises(DataError, match="`groups` holds the name 'a' where a group is needed"):
        as_members(["a", "b"], names)
