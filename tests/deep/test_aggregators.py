"""Aggregators and scalarizers of torchjd by name: what they make, what they remember, what they say when they cannot."""

import sys

import numpy as np
import pytest
import torch
from tests.contracts import ResumeContract, assert_same
from tests.deep.test_task_gradients import PlainSum, Toy

from taskloom.deep import (
    AdaTaskAdam,
    AdaTaskRecipe,
    AdaTaskStep,
    AggregatedStep,
    CAGradRecipe,
    DWARecipe,
    FairGradRecipe,
    FitOptions,
    NashMTLRecipe,
    PCGradRecipe,
    ScalarizedStep,
    SharedBottom,
    UPGradRecipe,
    fit,
)
from taskloom.deep._aggregated_recipes import AGGREGATED
from taskloom.deep._aggregators import GuardedAggregator, aggregate
from taskloom.deep._fit import new_net
from taskloom.tasks import DataError, FitError, OptionError, UnknownNameError, get_recipe

OPTIONS = FitOptions(max_steps=6, accelerator="cpu", learning_rate=1e-2)
torchjd = pytest.importorskip("torchjd", reason="the extra torchjd is not installed")
for solver in ("quadprog", "qpsolvers", "cvxpy", "ecos"):
    pytest.importorskip(solver, reason="the extra torchjd-solvers is not installed")


def gradients(K=3, P=20, seed=0, scale=1.0):
    return scale * torch.randn(K, P, generator=torch.Generator().manual_seed(seed))


def by_name(name, **options):
    return AGGREGATED[name](**options).fresh_aggregator()


def by_hand(name, K):
    from torchjd import aggregation as parts

    make = {
        "pcgrad": parts.PCGrad,
        "mgda": parts.MGDA,
        "aligned-mtl": parts.AlignedMTL,
        "imtl-g": parts.IMTLG,
        "upgrad": parts.UPGrad,
        "cagrad": lambda: parts.CAGrad(c=0.4),
        "nash-mtl": lambda: parts.NashMTL(n_tasks=K),
        "fairgrad": lambda: parts.FairGrad(alpha=2.0),
    }
    return make[name]()


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem")
@pytest.mark.parametrize("name", AGGREGATED)
def test_a_recipes_aggregator_makes_what_torchjds_does(name):
    ours, theirs = by_name(name), by_hand(name, 3)
    for seed in range(4):
        matrix = gradients(seed=seed)
        torch.manual_seed(seed)
        expected = theirs(matrix)
        torch.manual_seed(seed)
        # Only fairgrad is solved otherwise, and nash-mtl's bound acts after the sum and not before it.
        tolerance = 1e-3 if name == "fairgrad" else 1e-5
        torch.testing.assert_close(aggregate(ours, matrix, range(3)), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", AGGREGATED)
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_a_direction_serves_tasks_whose_gradients_agree(name, scale):
    # The rows have a large common part: no sensible rule goes against one of them.
    matrix = gradients(scale=scale) + 3 * scale * gradients(K=1, seed=9)
    assert (matrix @ by_name(name)(matrix) > 0).all()


def test_upgrad_is_the_mean_of_projections_on_the_cone_in_which_no_loss_rises():
    from scipy.optimize import lsq_linear

    matrix = gradients(K=4, P=6).double()
    matrix[1] = -matrix[0] + 0.2 * matrix[1]
    expected = np.zeros(6)
    rows = matrix.numpy()
    for row in rows:
        # The projection of g on {x: G x >= 0} is g + G' u with the u >= 0 that makes it shortest (Moreau).
        expected += (row + rows.T @ lsq_linear(rows.T, -row, (0, np.inf), tol=1e-14).x) / 4
    # The solver's Gram matrix has 1e-4 of its trace on the diagonal.
    found = by_name("upgrad")(matrix).numpy()
    np.testing.assert_allclose(found, expected, atol=3e-3 * np.linalg.norm(expected) + 1e-3)
    assert (rows @ found > -1e-2).all()


@pytest.mark.parametrize("c", [0.0, 0.4, 0.9])
def test_cagrad_is_best_for_the_worst_off_task_within_its_ball(c):
    from scipy.optimize import minimize

    matrix = gradients(K=3, P=5).double()
    matrix[2] = -0.5 * matrix[0] + matrix[2]
    rows, mean = matrix.numpy(), matrix.mean(dim=0).numpy()
    found = by_name("cagrad", c=c)(matrix).numpy()
    radius = c * np.linalg.norm(mean)
    assert np.linalg.norm(found - mean) <= radius * (1 + 1e-3) + 1e-9
    # maximise t over (d, t) with g_k d >= t and |d - mean| <= radius
    ball = {"type": "ineq", "fun": lambda x: radius**2 - ((x[:5] - mean) ** 2).sum()}
    worst = {"type": "ineq", "fun": lambda x: rows @ x[:5] - x[5]}
    start = np.append(mean, (rows @ mean).min())
    best = minimize(lambda x: -x[5], start, constraints=[ball, worst], options={"maxiter": 500}) if c else None
    optimum = (rows @ mean).min() if best is None else -best.fun
    assert (rows @ found).min() == pytest.approx(optimum, abs=2e-3 * np.linalg.norm(rows))


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3])
def test_fairgrad_solves_its_equation_whatever_the_length_of_gradients(scale):
    matrix = gradients(scale=scale).double()
    direction = by_name("fairgrad", alpha=2.0)(matrix)
    weights = torch.linalg.lstsq(matrix.T, direction[:, None]).solution[:, 0]
    assert (weights > 0).all()
    torch.testing.assert_close(matrix @ direction, weights**-0.5, rtol=1e-4, atol=0.0)


def test_nash_solves_its_equation_and_keeps_its_bound():
    matrix = gradients().double()
    aggregator = by_name("nash-mtl", max_norm=0.0)
    # The sequence of programs begins at the last weights: it comes nearer with every call.
    for _ in range(3):
        direction = aggregator(matrix)
    weights = torch.linalg.lstsq(matrix.T, direction[:, None]).solution[:, 0]
    gains = matrix @ direction
    torch.testing.assert_close(gains * weights, (gains * weights).mean().expand(3), rtol=2e-2, atol=0.0)
    assert float(by_name("nash-mtl", max_norm=0.25)(matrix).norm()) == pytest.approx(0.25)


def test_nash_bargains_between_those_who_are_there_and_remembers_the_others():
    aggregator = by_name("nash-mtl")
    aggregate(aggregator, gradients(), ["a", "b", "c"])
    known = dict(aggregator.inner.known)
    aggregate(aggregator, gradients(K=2, seed=1), ["c", "a"])
    assert dict(aggregator.inner.known)["b"] == known["b"]
    assert dict(aggregator.inner.known)["a"] != known["a"]


def test_nash_keeps_weights_for_some_steps_but_never_for_other_tasks():
    aggregator = by_name("nash-mtl", every=3, max_norm=0.0)
    directions = [aggregate(aggregator, gradients(seed=0), range(3)) for _ in range(2)]
    assert torch.equal(*directions)
    weights = aggregator.inner.known
    aggregate(aggregator, gradients(K=2, seed=2), [0, 1])
    assert aggregator.inner.known != weights
    weights = aggregator.inner.known
    aggregate(aggregator, gradients(K=2, seed=3), [0, 1])
    assert aggregator.inner.known != weights, "the fourth direction is solved for"


@pytest.mark.parametrize("name", AGGREGATED)
@pytest.mark.parametrize("bad", [torch.inf, torch.nan, 1e30])
def test_gradients_past_all_bounds_give_no_number_and_no_crash(name, bad):
    matrix = gradients()
    matrix[1, 2] = bad
    assert by_name(name)(matrix).isnan().all()
    assert not by_name(name)(torch.zeros(3, 20)).any()


def test_a_solver_that_fails_ends_the_fit_with_a_reason():
    class Failing(torch.nn.Module):
        def forward(self, matrix):
            raise ValueError("no progress")

    with pytest.raises(FitError, match=r"`mine` found no direction for 3 gradients \(no progress\)"):
        GuardedAggregator("mine", Failing())(gradients())


@pytest.mark.parametrize("name", ["aligned-mtl", "upgrad", "cagrad", "nash-mtl", "fairgrad"])
def test_a_rate_that_diverges_is_reported_as_that(name, shared_parts):
    train, validation, _ = shared_parts
    options = FitOptions(learning_rate=1e30, max_steps=11, accelerator="cpu")
    with pytest.raises(FitError, match="diverged"):
        AGGREGATED[name](options=options).fit(train, validation, seed=0)


def stepping(name, **options):
    return lambda optimizer, fabric: AggregatedStep(optimizer, fabric, by_name(name, **options))


class TestUPGradResumes(ResumeContract):
    steps = 4
    name, options = "upgrad", {}

    def make(self):
        return Toy(stepping(self.name, **self.options), absent={(1, 1), (6, 0)})

    def advance(self, thing, n):
        thing.advance(n)


class TestCAGradResumes(TestUPGradResumes):
    name = "cagrad"


class TestFairGradResumes(TestUPGradResumes):
    name = "fairgrad"


class TestNashMTLResumes(TestUPGradResumes):
    name = "nash-mtl"


class TestNashMTLWithKeptWeightsResumes(TestUPGradResumes):
    # Half-way, at step 4, the weights are those of step 2.
    name, options = "nash-mtl", {"every": 3}


def joined(name):
    return lambda optimizer, fabric: AdaTaskStep(optimizer, fabric, aggregator=by_name(name))


class TestAdaTaskWithNashMTLResumes(TestUPGradResumes):
    def make(self):
        return Toy(joined("nash-mtl"), absent={(1, 1), (6, 0)})


class TestAdaTaskWithPCGradResumes(TestUPGradResumes):
    def make(self):
        return Toy(joined("pcgrad"), absent={(1, 1), (6, 0)})


class TestAdaTaskWithGradVacResumes(TestUPGradResumes):
    # An aggregator of torchjd itself, with a memory.
    def make(self):
        from torchjd.aggregation import GradVac

        return Toy(lambda optimizer, fabric: AdaTaskStep(optimizer, fabric, aggregator=GradVac()))


def dwa(optimizer, fabric, window=3):
    recipe = DWARecipe(window=window)
    return ScalarizedStep(optimizer, fabric, recipe._make, window)


class TestDWAResumes(TestUPGradResumes):
    # With windows of 3 steps, step 10 is within one.
    steps = 10

    def make(self):
        return Toy(lambda optimizer, fabric: dwa(optimizer, fabric, window=3), absent={(1, 1), (6, 0)})


def test_dynamic_weights_are_those_of_the_formula():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.tensor([3.0, 2.0]))
    step = dwa(torch.optim.SGD([weight], lr=0.05), None)
    seen, moves = [], []
    for _ in range(9):
        before = weight.detach().clone()
        seen.append(step.step(lambda: weight.square() * torch.tensor([1.0, 0.2])))
        moves.append((before - weight.detach()) / (0.05 * 2 * before * torch.tensor([1.0, 0.2])))
    # Two windows of three steps with even weights, then K softmax of the ratio of their means over T = 2.
    older, newer = torch.stack(seen[:3]).mean(dim=0), torch.stack(seen[3:6]).mean(dim=0)
    expected = 2 * torch.softmax(newer / older / 2.0, dim=0)
    for move in moves[:6]:
        torch.testing.assert_close(move, torch.ones(2), rtol=1e-4, atol=1e-4)
    for move in moves[6:]:
        torch.testing.assert_close(move, expected, rtol=1e-4, atol=1e-4)
    assert expected[1] > expected[0], "the task that falls slowly counts for more"


def test_a_longer_window_than_the_fit_is_the_plain_sum():
    toys = [Toy(lambda optimizer, fabric: dwa(optimizer, fabric, window=100)), Toy(PlainSum)]
    for toy in toys:
        toy.advance(8)
    for one, two in zip(*(toy.net.parameters() for toy in toys), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("recipe", [UPGradRecipe, CAGradRecipe, NashMTLRecipe, FairGradRecipe, DWARecipe])
@pytest.mark.parametrize("parts", ["shared_parts", "own_parts"])
def test_recipes_train_on_every_shape_of_data(recipe, parts, request):
    train, validation, test = request.getfixturevalue(parts)
    fits = [recipe(options=OPTIONS).fit(train, validation, seed=0, budget=1) for _ in range(2)]
    assert np.isfinite(fits[0].validation_loss).all()
    np.testing.assert_array_equal(fits[0].validation_loss, fits[1].validation_loss)
    for t in range(train.n_tasks):
        assert np.isfinite(fits[0].predictor.predict(test.X[test.rows(t)], [t])[0]).all()


@pytest.mark.parametrize("name", ["pcgrad", "upgrad", "cagrad", "nash-mtl"])
def test_adatask_with_an_aggregator_is_its_optimizer_with_torchjds(name, shared_parts):
    train, _, _ = shared_parts
    X, Y = (torch.as_tensor(part[:32], dtype=torch.float32) for part in (train.X, train.y))
    Y = Y.nan_to_num()
    nets = [new_net(lambda shape, tasks: SharedBottom(shape[0], tasks, (8,)), train.X.shape[1:], train.tasks, 0) for _ in "ab"]
    # torchjd's own where it has no memory to tell of; ours is held against it above.
    aggregator = by_name(name) if name == "nash-mtl" else by_hand(name, train.n_tasks)
    groups = [{"params": nets[0].encoder.parameters()}, {"params": nets[0].heads.parameters(), "shared": False}]
    optimizer = AdaTaskAdam(groups, train.n_tasks, lr=1e-2, aggregator=aggregator)
    step = AdaTaskRecipe(aggregator=name).update()(torch.optim.Adam(nets[1].parameters(), lr=1e-2), None)
    for n in range(4):
        torch.manual_seed(n)
        optimizer.backward(list((nets[0](X) - Y).square().mean(dim=0).unbind()))
        optimizer.step()
        optimizer.zero_grad()
        torch.manual_seed(n)
        step.step(lambda: (nets[1](X) - Y).square().mean(dim=0))
    for one, two in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["nash-mtl", "dwa", "adatask+nash-mtl"])
def test_a_killed_fit_goes_on_to_the_bit(name, shared_parts, tmp_path):
    train, validation, _ = shared_parts
    made = {
        "nash-mtl": NashMTLRecipe(every=4),
        "dwa": DWARecipe(window=3),
        "adatask+nash-mtl": AdaTaskRecipe(aggregator="nash-mtl"),
    }
    recipe = made[name]

    def run(checkpoint, steps):
        net = new_net(recipe.net, train.X.shape[1:], train.tasks, 0)
        options = FitOptions(max_steps=steps, patience=1000, accelerator="cpu", learning_rate=1e-2, checkpoint_every=50)
        return fit(net, train, validation, options=options, update=recipe.update(), checkpoint=checkpoint).net.state_dict()

    # At step 5 kept weights are one step old, and a window two.
    whole = run(tmp_path / "whole.pt", 10)
    run(tmp_path / "parts.pt", 5)
    assert_same(dict(whole), dict(run(tmp_path / "parts.pt", 10)))


def test_an_optimizers_state_has_what_its_aggregator_remembers_and_no_other_takes_it():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = AdaTaskAdam([weight], 2, aggregator=by_name("nash-mtl"))
    optimizer.backward([weight.sum(), (weight * torch.arange(3)).sum()])
    optimizer.step()
    state = optimizer.state_dict()
    twin = AdaTaskAdam([torch.nn.Parameter(torch.ones(3))], 2, aggregator=by_name("nash-mtl"))
    twin.load_state_dict(state)
    assert twin.settings.aggregator.inner.known == optimizer.settings.aggregator.inner.known
    for aggregator in (by_hand("upgrad", 2), None):
        other = AdaTaskAdam([torch.nn.Parameter(torch.ones(3))], 2, aggregator=aggregator)
        with pytest.raises(DataError, match="make the optimizer with the one that it was saved with"):
            other.load_state_dict(state)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: CAGradRecipe(c=-0.1), "`c`=-0.1"),
        (lambda: CAGradRecipe(c=float("nan")), "`c`=nan"),
        (lambda: NashMTLRecipe(max_norm=-1.0), "`max_norm`=-1.0"),
        (lambda: NashMTLRecipe(every=0), "`every`=0"),
        (lambda: NashMTLRecipe(every=2.5), "`every`=2.5"),
        (lambda: DWARecipe(window=2.5), "`window`=2.5"),
        (lambda: CAGradRecipe(c="x"), "`c`='x'"),
        (lambda: PCGradRecipe(dominance_every=5), "`dominance_every`=5 of `pcgrad`"),
        (lambda: AdaTaskRecipe(aggregator="pcgrad", dominance_every=5), "`dominance_every`=5 of `adatask`"),
        (lambda: PCGradRecipe(net="mlp"), "`net` is a str"),
        (lambda: FairGradRecipe(alpha=-1.0), "`alpha`=-1.0"),
        (lambda: DWARecipe(temperature=0.0), "`temperature`=0.0"),
        (lambda: DWARecipe(window=0), "`window`=0"),
        (lambda: AdaTaskRecipe(aggregator="pcgrad", reduction="mean"), "`reduction`='mean' with an `aggregator`"),
    ],
)
def test_bad_settings_are_named(make, match):
    with pytest.raises(OptionError, match=match):
        make()


def test_an_unknown_aggregator_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="pcgrad"):
        AdaTaskRecipe(aggregator="pcgard")


@pytest.mark.parametrize(
    ("name", "solver"), [("upgrad", "quadprog"), ("cagrad", "cvxpy"), ("nash-mtl", "ecos"), ("adatask", "cvxpy")]
)
def test_without_its_solver_a_recipe_names_the_extra(name, solver, monkeypatch):
    monkeypatch.setitem(sys.modules, solver, None)
    with pytest.raises(OptionError, match=r"needs a solver beside torchjd; install taskloom\[torchjd-solvers\]"):
        AdaTaskRecipe(aggregator="cagrad") if name == "adatask" else get_recipe(name)


def test_recipes_of_one_kind_are_told_apart_by_their_settings():
    recipes = [CAGradRecipe(), CAGradRecipe(c=0.5), CAGradRecipe(featurewise=True), PCGradRecipe(), AdaTaskRecipe()]
    recipes += [AdaTaskRecipe(aggregator=name) for name in ("pcgrad", "upgrad")]
    assert len({repr(recipe.settings()) for recipe in recipes}) == len(recipes)
