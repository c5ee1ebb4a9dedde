import numpy as np
import pytest
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from taskloom.tasks import DataError, FeatureEncoder, Features, TargetScaler, TaskData, check_finite, load_diabetes_tasks


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    numeric = rng.normal(size=(40, 3)) * [1, 100, 0] + [0, 5, 7]
    numeric[rng.random((40, 3)) < 0.2] = np.nan
    texts = rng.choice(np.array(["red", "green", None], dtype=object), size=(40, 1))
    return Features(numeric, ("a", "b", "constant"), texts, ("colour",))


def test_numeric_columns_equal_scikit_learns_pipeline(features):
    ours = FeatureEncoder.fit(features).transform(features)[:, :3]
    # Ours standardises by the observed entries alone; theirs after filling: they differ by one factor.
    theirs = make_pipeline(SimpleImputer(), StandardScaler()).fit_transform(features.numeric)
    share = np.isfinite(features.numeric).mean(axis=0)
    np.testing.assert_allclose(ours, theirs * np.sqrt(share) ** -1 * share, atol=1e-12)


def test_only_training_rows_are_looked_at(features):
    train, rest = features.take(np.arange(20)), features.take(np.arange(20, 40))
    encoder = FeatureEncoder.fit(train)
    changed = Features(rest.numeric * 1e6, rest.numeric_names, rest.categorical, rest.categorical_names)
    assert np.array_equal(FeatureEncoder.fit(train).mean, encoder.mean)
    observed = np.isfinite(rest.numeric)
    np.testing.assert_allclose(
        encoder.transform(changed)[:, :3][observed], ((changed.numeric - encoder.mean) / encoder.scale)[observed]
    )


def test_missing_unseen_and_rare_categories_have_their_columns(features):
    encoder = FeatureEncoder.fit(features)
    assert encoder.categories == (("(missing)", "green", "red", "(other)"),)
    new = Features(np.zeros((3, 3)), features.numeric_names, np.array([["red"], [None], ["mauve"]], dtype=object), ("colour",))
    assert encoder.transform(new)[:, 3:].tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]


def test_many_categories_keep_the_frequent_ones():
    values = np.array([[f"c{i}"] for i in range(100) for _ in range(1 + (i < 5))], dtype=object)
    encoder = FeatureEncoder.fit(Features(np.zeros((len(values), 1)), ("a",), values, ("c",)))
    assert len(encoder.categories[0]) == 33
    assert {f"c{i}" for i in range(5)} < set(encoder.categories[0])


def test_everything_is_finite_whatever_comes():
    wild = Features(np.array([[np.inf, np.nan, 3.0], [-np.inf, np.nan, 3.0], [1.0, np.nan, 3.0]]))
    encoded = FeatureEncoder.fit(wild).transform(wild)
    assert np.isfinite(encoded).all()
    assert np.isfinite(FeatureEncoder.fit(wild).transform(Features(np.full((2, 3), np.nan)))).all()
    # A constant column stays at zero however large it is: rounding is not blown up.
    large = Features(np.full((50, 1), 1e9 / 3))
    assert np.abs(FeatureEncoder.fit(large).transform(large)).max() < 1e-6


def test_images_are_scaled_by_one_mean_and_deviation():
    images = Features(np.random.default_rng(0).normal(3, 2, size=(10, 1, 4, 4)))
    encoded = FeatureEncoder.fit(images).transform(images)
    assert encoded.shape == (10, 1, 4, 4)
    np.testing.assert_allclose([encoded.mean(), encoded.std()], [0, 1], atol=1e-12)


def test_encoder_survives_its_state(features):
    encoder = FeatureEncoder.fit(features)
    again = FeatureEncoder.from_state(*encoder.state())
    assert np.array_equal(again.transform(features), encoder.transform(features))


def test_targets_are_standardised_per_task_and_back():
    data = load_diabetes_tasks()
    y = data.y.copy()
    y[::3, 1] = np.nan
    data = TaskData(data.tasks, data.features, y)
    scaler = TargetScaler.fit(data)
    encoded = scaler.encode(data)
    for t in range(data.n_tasks):
        np.testing.assert_allclose([encoded.labels(t).mean(), encoded.labels(t).std()], [0, 1], atol=1e-12)
        np.testing.assert_allclose(scaler.invert(encoded.labels(t), t), data.labels(t))
    own = load_diabetes_tasks("age_groups")
    for t in range(own.n_tasks):
        np.testing.assert_allclose(TargetScaler.fit(own).encode(own).labels(t).std(), 1)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e9 / 3])
def test_a_target_that_is_constant_in_training_keeps_its_unit(value):
    y = np.column_stack([np.arange(50.0), np.full(50, value)])
    data = TaskData(tuple(load_diabetes_tasks().tasks[:2]), Features(np.eye(50)), y)
    assert TargetScaler.fit(data).scale[1] == 1
    assert np.abs(TargetScaler.fit(data).encode(data).labels(1)).max() < 1e-6


def test_tiny_units_are_no_constants():
    x = np.random.default_rng(0).normal(size=(30, 1))
    one, tiny = (FeatureEncoder.fit(Features(scale * x)).transform(Features(scale * x)) for scale in (1.0, 1e-13))
    np.testing.assert_allclose(one, tiny)


def test_categories_must_be_encoded_before_use(features):
    data = TaskData((), features, np.empty((40, 0)))
    with pytest.raises(DataError, match="FeatureEncoder"):
        _ = data.X
    assert FeatureEncoder.fit(features).encode(data).X.shape == (40, 7)


def test_without_imputation_the_first_bad_entry_is_named(features):
    with pytest.raises(DataError, match="feature `b` is inf in row 1 and imputation is off"):
        check_finite(Features(np.array([[1.0, 2.0], [3.0, np.inf]]), ("a", "b")))
    clean = Features(np.ones((2, 1)), ("a",), np.array([["x"], [None]], dtype=object), ("c",))
    with pytest.raises(DataError, match="feature `c` is missing in row 1"):
        check_finite(clean)
