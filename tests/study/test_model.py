import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file, save_file

from taskloom.deep import MLP, FitOptions, JointRecipe, SingleRecipe
from taskloom.study import demo_data, fit_model, load_model, save_csv
from taskloom.tasks import (
    DataError,
    ModelFileError,
    OutputError,
    TableOptions,
    TaskData,
    UnknownNameError,
    read_table,
    split_rows,
)

FAST = FitOptions(max_steps=60, accelerator="cpu")
RECIPES = {
    "ridge": "ridge",
    "single": SingleRecipe(options=FAST),
    "joint": JointRecipe(net=MLP((16,), dropout=0.1), options=FAST),
}
FRESH = """
import json, sys
from taskloom.study import load_model
json.dump(load_model(sys.argv[1]).predict(sys.argv[2]), open(sys.argv[3], "w"))
"""


@pytest.fixture
def table(tmp_path):
    return save_csv(demo_data(), tmp_path / "diabetes.csv")


@pytest.fixture
def mixed_table(mixed_data, tmp_path):
    frame = mixed_data.with_columns(
        colour=pl.Series(["red", "green", None] * 80), grade=pl.col("grade").replace_strict({0: "low", 1: "mid", 2: "top"})
    )
    frame.write_csv(tmp_path / "mixed.csv")
    return tmp_path / "mixed.csv"


def test_demo_table_reads_back_as_the_demo(table):
    data = read_table(table, target="progression", by="age group")
    assert sorted(task.name for task in data.tasks) == sorted(task.name for task in demo_data().tasks)
    assert data.features.names == demo_data().features.names
    for t, task in enumerate(data.tasks):
        other = [task.name for task in demo_data().tasks].index(task.name)
        assert np.array_equal(data.labels(t), demo_data().labels(other))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_fresh_process_predicts_the_same_bits(recipe, table, tmp_path):
    data = read_table(table, target="progression", by="age group")
    model = fit_model(data, RECIPES[recipe], budget=1)
    here = model.predict(table)
    model.save(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model.json", "weights.safetensors"]
    out = tmp_path / "predictions.json"
    subprocess.run([sys.executable, "-c", FRESH, str(tmp_path / "model"), str(table), str(out)], check=True)
    assert json.loads(out.read_text()) == here
    # And they say something: rank correlation with the truth far from chance.
    truth = pl.read_csv(table, infer_schema_length=None)["progression"]
    assert np.corrcoef(here["prediction"], truth)[0, 1] > 0.4


@pytest.mark.parametrize("recipe", RECIPES)
def test_kinds_and_categories_pass_through_a_saved_model(recipe, mixed_table, tmp_path):
    options = TableOptions(kind={"stage": "multiclass"})
    data = read_table(mixed_table, targets=["amount", "ill", "grade", "stage"], options=options)
    assert [task.kind for task in data.tasks] == ["regression", "binary", "multiclass", "multiclass"]
    model = load_model(fit_model(data, RECIPES[recipe], budget=1).save(tmp_path / "model"))
    columns = model.predict(mixed_table)
    assert list(columns) == [
        "amount", "ill", "ill: p(0)", "ill: p(1)", "grade", "grade: p(low)", "grade: p(mid)", "grade: p(top)",
        "stage", "stage: p(0)", "stage: p(1)", "stage: p(2)", "stage: p(3)",
    ]  # fmt: skip
    assert set(columns["grade"]) <= {"low", "mid", "top"}
    assert set(columns["stage"]) <= {0, 1, 2, 3}
    probabilities = np.column_stack([columns[f"stage: p({c})"] for c in range(4)])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert [int(stage) for stage in columns["stage"]] == probabilities.argmax(axis=1).tolist()


def test_validation_scores_are_those_of_held_back_rows(table):
    data = read_table(table, target="progression", by="age group")
    model = fit_model(data, "ridge", seed=3)
    held = data.take(split_rows(data, 3, (0.8, 0.2, 0.0)).validation)
    for t, task in enumerate(data.tasks):
        predicted = model.predict_features(held.features.take(held.rows(t)), [t])[0]
        assert task.scorer.score(held.labels(t), predicted) == pytest.approx(model.validation_scores[task.name], rel=1e-12)


def test_a_net_of_ones_own_is_saved_and_loaded_with_its_factory(table, tmp_path):
    from torch import nn

    def make(shape, tasks):
        return nn.Sequential(nn.Linear(shape[0], 4), nn.Tanh(), nn.Linear(4, len(tasks)))

    data = read_table(table, target="progression", by="age group")
    model = fit_model(data, SingleRecipe(net=make, options=FAST), budget=1)
    folder = model.save(tmp_path / "model")
    with pytest.raises(ModelFileError, match="give `load_model` the factory"):
        load_model(folder)
    assert load_model(folder, net=make).predict(table) == model.predict(table)
    others = [
        (lambda shape, tasks: nn.Linear(shape[0], len(tasks)), "no saved '0/weight'"),
        (lambda shape, tasks: nn.Sequential(nn.Linear(shape[0], 4)), "no place for `0/2.bias`"),
        (lambda shape, tasks: nn.Sequential(nn.Linear(shape[0], 5), nn.Tanh(), nn.Linear(5, len(tasks))), "size mismatch"),
    ]
    for other, reason in others:
        with pytest.raises(ModelFileError, match=f"`net`=.* makes other nets than the saved ones .*{reason}.*give the factory"):
            load_model(folder, net=other)
    with pytest.raises(ModelFileError, match="the model holds no net"):
        load_model(fit_model(data, "ridge").save(tmp_path / "ridge"), net=make)


def test_a_model_of_arrays_predicts_arrays(mixed_table):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    model = fit_model(TaskData.shared_rows(X, X @ rng.normal(size=(3, 2)), ["a", "b"]), "ridge")
    everything, by_column = model.predict_features(X), model.predict(pl.DataFrame(X, schema=["x0", "x1", "x2"]))
    assert [values.tolist() for values in everything] == [by_column["a"], by_column["b"]]
    assert np.array_equal(model.predict_features(X, ["b"])[0], everything[1])
    assert np.array_equal(model.predict_features(X.tolist(), [np.int64(1)])[0], everything[1])
    texts = fit_model(read_table(mixed_table, targets=["amount"]), "ridge")
    bad = [
        (lambda: model.predict(X), DataError, "give it to `predict_features`"),
        (lambda: model.predict_features(X[:, :2]), DataError, "has 2 named columns; .* the 3 columns x0, x1, x2"),
        (lambda: model.predict_features(X[0]), DataError, "has shape"),
        (lambda: model.predict_features([["a", "b", "c"]]), DataError, "no array of numbers"),
        (lambda: texts.predict_features(X), DataError, "cannot hold the texts of `grade`, `colour`"),
        (lambda: model.predict_features(X, ["c"]), UnknownNameError, "named `c`"),
        (lambda: model.predict_features(X, [7]), UnknownNameError, r"by number \(0 ... 1\), named `7`"),
        (lambda: model.predict_features(X, [-1]), UnknownNameError, "named `-1`"),
    ]
    for call, error, message in bad:
        with pytest.raises(error, match=message):
            call()


@pytest.fixture
def saved(table, tmp_path):
    data = read_table(table, target="progression", by="age group")
    return fit_model(data, "ridge").save(tmp_path / "model")


def _edit(folder, **changes):
    settings = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**settings, **changes}))


def test_damaged_missing_and_foreign_models_are_refused(saved, tmp_path):
    with pytest.raises(ModelFileError, match="no model in"):
        load_model(tmp_path / "nowhere")
    whole = {name: (saved / name).read_bytes() for name in ("model.json", "weights.safetensors")}

    def damage(message):
        with pytest.raises(ModelFileError, match=message):
            load_model(saved)
        for name, content in whole.items():
            (saved / name).write_bytes(content)

    (saved / "weights.safetensors").write_bytes(whole["weights.safetensors"][:-7])
    damage("weights.safetensors is damaged")
    arrays = load_file(saved / "weights.safetensors")
    save_file({**arrays, "scaler/mean": arrays["scaler/mean"] + 1}, saved / "weights.safetensors")
    damage("damaged or of another model")
    (saved / "model.json").write_bytes(whole["model.json"][:200])
    damage("model.json is damaged")
    (saved / "model.json").write_text("[1, 2]")
    damage("model.json is damaged")
    (saved / "model.json").write_bytes(b"\xff\xfe\x00\x80")
    damage("model.json is damaged")
    _edit(saved, version=99)
    damage("this taskloom reads")
    _edit(saved, numeric_names=["bp", "bmi"])
    damage("model.json is damaged; save it again")
    (saved / "weights.safetensors").unlink()
    damage("no model in")
    assert load_model(saved).recipe == "ridge"


def test_task_names_and_texts_read_as_in_training_whatever_else_is_in_the_file(tmp_path):
    sites, zips, flags = ["007", "012", "A1"], ["01", "02", "x"], ["true", "false", "unknown"]
    values = [(i % 3, i // 3 % 3, i // 9 % 3, i % 11) for i in range(120)]
    rows = [f"{sites[s]},{zips[z]},{flags[f]},{x},{3 * z + x + f}" for s, z, f, x in values]
    header = "site,zip,flag,x,y"
    (tmp_path / "all.csv").write_text("\n".join([header, *rows]) + "\n")
    model = fit_model(read_table(tmp_path / "all.csv", target="y", by="site"), "ridge")
    whole = model.predict(tmp_path / "all.csv")["prediction"]
    # Alone, these rows look like numbers and truth values.
    some = [i for i, row in enumerate(rows) if not {"A1", "x", "unknown"} & set(row.split(","))]
    (tmp_path / "some.csv").write_text("\n".join([header, *(rows[i] for i in some)]) + "\n")
    np.testing.assert_allclose(model.predict(tmp_path / "some.csv")["prediction"], [whole[i] for i in some], rtol=1e-12)
    numbered = [row.replace("A1", "13") for row in rows]
    (tmp_path / "numbered.csv").write_text("\n".join([header, *numbered]) + "\n")
    seven = fit_model(read_table(tmp_path / "numbered.csv", target="y", by="site"), "ridge")
    assert [task.name for task in seven.tasks] == ["7", "12", "13"]
    assert set(seven.predict(tmp_path / "numbered.csv")["site"]) == {"7", "12", "13"}


def test_a_model_of_data_that_were_not_imputed_refuses_missing_features(table):
    options = TableOptions(impute=False)
    model = fit_model(read_table(table, target="progression", by="age group", options=options), "ridge")
    frame = pl.read_csv(table, infer_schema_length=None).with_columns(pl.lit(None).cast(pl.Float64).alias("bmi"))
    with pytest.raises(DataError, match="`bmi` is nan in row 0 and imputation is off"):
        model.predict(frame)


def test_a_bfloat16_model_is_saved(table, tmp_path):
    data = read_table(table, target="progression", by="age group")
    options = FitOptions(max_steps=20, accelerator="cpu", precision="bf16-true")
    model = fit_model(data, JointRecipe(options=options), budget=1)
    assert load_model(model.save(tmp_path / "model")).predict(table) == model.predict(table)


def test_rows_that_cannot_be_predicted_are_refused(saved, table):
    model, frame = load_model(saved), pl.read_csv(table, infer_schema_length=None)
    with pytest.raises(UnknownNameError, match="no column named `bmi`"):
        model.predict(frame.drop("bmi"))
    with pytest.raises(UnknownNameError, match=r"no trained task \(column `age group`\) named `age 99`"):
        model.predict(frame.with_columns(pl.lit("age 99").alias("age group")))
    with pytest.raises(DataError, match="`bmi` holds values that are not numbers"):
        model.predict(frame.with_columns(pl.lit("heavy").alias("bmi")))
    (saved.parent / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        model.save(saved.parent / "file" / "model")
    # Rows in another order, of one task only, with columns to spare: the same predictions.
    whole = frame.with_columns(pl.Series("predicted", model.predict(frame)["prediction"]), pl.lit(1).alias("spare"))
    some = whole.reverse().filter(pl.col("age group") == "19 to 34")
    np.testing.assert_allclose(model.predict(some)["prediction"], some["predicted"], rtol=1e-12)
