import numpy as np
import pytest
from tests.conftest import encoded_parts
from torch import nn

from taskloom.deep import MLP, AdaTaskRecipe, FitOptions, JointRecipe, NetPredictor, SingleRecipe
from taskloom.tasks import FitError, ModelFileError, OptionError, TableOptions, Task, read_table

FAST = FitOptions(max_steps=120, validate_every=10, batch_size=32, accelerator="cpu")
RECIPES = [SingleRecipe(net=MLP((8,)), options=FAST), JointRecipe(net=MLP((8,)), options=FAST)]


@pytest.fixture
def mixed_parts(mixed_data):
    options = TableOptions(kind={"grade": "multiclass", "stage": "multiclass"})
    return encoded_parts(read_table(mixed_data, targets=["amount", "ill", "grade", "stage"], options=options))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: SingleRecipe(net="mlp"), "`net` is a str: give what makes a net"),
        (lambda: JointRecipe(net="mlp"), "`net` is a str: give what makes a net"),
        (lambda: JointRecipe(net=nn.Linear(3, 2)), "`net` is a Linear: give what makes a net"),
        (lambda: JointRecipe(options=None), "`options`=None"),
        (lambda: SingleRecipe(options={"max_steps": 3}), "`options`={'max_steps': 3}"),
        (lambda: JointRecipe(dominance_every=-1), "`dominance_every`=-1"),
        (lambda: JointRecipe(dominance_every=2.5), "`dominance_every`=2.5"),
        (lambda: AdaTaskRecipe(dominance_every=2.5), "`dominance_every`=2.5"),
    ],
)
def test_settings_that_no_fit_can_use_are_refused_when_they_are_given(make, match):
    with pytest.raises(OptionError, match=match):
        make()


def test_a_budget_of_none_is_refused(own_parts):
    train, validation, _ = own_parts
    for recipe in RECIPES:
        with pytest.raises(OptionError, match="`budget`=0"):
            recipe.fit(train, validation, seed=0, budget=0)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_mixed_kinds_are_learned_and_survive_their_state(recipe, mixed_parts):
    train, validation, test = mixed_parts
    fit = recipe.fit(train, validation, seed=0, budget=2)
    predictions = fit.predictor.predict(test.X, range(4))
    scores = [task.scorer.score(test.labels(t), predictions[t][test.rows(t)]) for t, task in enumerate(test.tasks)]
    # Far above chance: R2 0, AUC 0.5, accuracy 0.4.
    assert (np.array(scores) > [0.5, 0.8, 0.55, 0.55]).all()
    for values in predictions[2:]:
        np.testing.assert_allclose(values.sum(axis=1), 1)
    again = NetPredictor.from_state(*fit.predictor.state(), train.tasks)
    for one, two in zip(predictions, again.predict(test.X, range(4)), strict=True):
        assert np.array_equal(one, two)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_same_seed_same_bits_and_the_reported_loss_is_the_models(recipe, own_parts):
    train, validation, _ = own_parts
    one, two = (recipe.fit(train, validation, seed=3, budget=2) for _ in range(2))
    other = recipe.fit(train, validation, seed=4, budget=2)
    assert np.array_equal(one.validation_loss, two.validation_loss)
    assert not np.array_equal(one.validation_loss, other.validation_loss)
    for t in range(train.n_tasks):
        predicted = one.predictor.predict(validation.X[validation.rows(t)], [t])[0]
        assert ((predicted - validation.labels(t)) ** 2).mean() == pytest.approx(one.validation_loss[t], rel=1e-5)
    assert one.total_steps >= one.steps > 0


def test_more_candidates_never_choose_a_worse_one(own_parts):
    train, validation, _ = own_parts
    recipe = JointRecipe(net=MLP((8,)), options=FAST)
    few = recipe.fit(train, validation, seed=0, budget=2).validation_loss.mean()
    many = recipe.fit(train, validation, seed=0, budget=3).validation_loss.mean()
    assert many <= few + 1e-9
    single = SingleRecipe(net=MLP((8,)), options=FAST)
    one, two = (single.fit(train, validation, seed=0, budget=b).validation_loss for b in (2, 3))
    assert (two <= one + 1e-9).all()


def test_a_fixed_learning_rate_is_the_only_candidate():
    assert FitOptions(learning_rate=0.02).candidate_rates(5) == [0.02]
    assert FitOptions().candidate_rates(1) == [pytest.approx(np.sqrt(3e-4 * 1e-2))]
    assert FitOptions().candidate_rates(3)[::2] == [3e-4, 1e-2]


def test_all_candidates_diverging_is_an_error(own_parts):
    train, validation, _ = own_parts
    with pytest.raises(FitError, match="diverged"):
        JointRecipe(options=FitOptions(learning_rate=1e30, max_steps=20, accelerator="cpu")).fit(train, validation, seed=0)


def test_a_saved_net_of_ones_own_needs_its_factory(own_parts):
    from torch import nn

    def make(shape, tasks):
        return nn.Linear(shape[0], len(tasks))

    train, validation, test = own_parts
    fit = JointRecipe(net=make, options=FAST).fit(train, validation, seed=0, budget=1)
    arrays, settings = fit.predictor.state()
    with pytest.raises(ModelFileError, match="give `load_model` the factory"):
        NetPredictor.from_state(arrays, settings, train.tasks)
    again = NetPredictor.from_factory(arrays, settings, train.tasks, make)
    assert np.array_equal(again.predict(test.X, [1])[0], fit.predictor.predict(test.X, [1])[0])


def test_settings_tell_recipes_apart():
    from torch import nn

    recipes = [
        SingleRecipe(),
        JointRecipe(),
        JointRecipe(net=MLP((8,))),
        JointRecipe(options=FitOptions(batch_size=8)),
        JointRecipe(net=lambda shape, tasks: nn.Linear(shape[0], len(tasks))),
        JointRecipe(net=lambda shape, tasks: nn.Linear(shape[0], 1 * len(tasks))),
    ]
    assert len({repr(recipe.settings()) for recipe in recipes}) == len(recipes)
    assert JointRecipe(title="other").settings() == JointRecipe().settings()
    assert JointRecipe(title="other").label == "other"
    assert Task("a").kind == "regression"
