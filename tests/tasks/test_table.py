import datetime as dt
import json
from dataclasses import replace

import narwhals as nw
import numpy as np
import pandas as pd
import polars as pl
import pytest

from taskloom.tasks import DataError, OptionError, TableOptions, TaskloomError, UnknownNameError, read_rows, read_table

TABLE = pl.DataFrame(
    {
        "site": ["b", "a", "a", "b", None, "a"],
        "age": [30, 41, None, 52, 63, 74],
        "sex": ["f", "m", "f", None, "m", "f"],
        "smokes": [True, False, True, None, False, True],
        "seen": [dt.date(2020, 1, day) for day in range(1, 7)],
        "cost": [1.5, 2.5, 3.5, 4.5, 5.5, None],
        "ill": ["no", "yes", "yes", "no", "no", "yes"],
    }
)


@pytest.fixture
def csv_file(tmp_path):
    path = tmp_path / "table.csv"
    TABLE.write_csv(path)
    return path


def test_own_rows_from_target_and_by():
    data = read_table(TABLE, target="cost", by="site")
    assert [task.name for task in data.tasks] == ["a", "b"]
    assert data.labels(0).tolist() == [2.5, 3.5]
    assert data.labels(1).tolist() == [1.5, 4.5]
    assert data.features.numeric_names == ("age", "smokes", "seen")
    assert data.features.categorical_names == ("sex", "ill")
    assert any("1 rows without a value of `site`" in note for note in data.notes)
    assert any("1 rows without any label" in note for note in data.notes)


def test_shared_rows_from_targets_with_kinds_inferred():
    data = read_table(TABLE, targets=["cost", "ill"], options=TableOptions(drop=["site"]))
    assert [(task.name, task.kind, task.classes) for task in data.tasks] == [
        ("cost", "regression", ()),
        ("ill", "binary", ("no", "yes")),
    ]
    assert np.isnan(data.y[5, 0])
    assert data.y[:, 1].tolist() == [0, 1, 1, 0, 0, 1]


def test_what_was_asked_of_a_table_is_kept_with_the_data(csv_file):
    options = TableOptions({"cost": "regression"}, "rmse", ("sex", "smokes", "site"), ("age",), impute=False)
    data = read_table(csv_file, targets=("cost", "age"), options=options)
    known = {"table": "table.csv", "target": None, "by": None, "targets": ["cost", "age"], "impute": False}
    asked = {"kind": {"cost": "regression"}, "metric": "rmse", "drop": ["sex", "smokes", "site"], "skip_tasks": ["age"]}
    assert data.question == known | asked
    json.dumps(data.question)
    own = read_table(TABLE, target="cost", by="site")
    assert [own.question[name] for name in ("table", "target", "by", "targets")] == [None, "cost", "site", None]
    assert own.take(np.arange(2)).question == own.question
    assert own.digest() == replace(own, question={}).digest()


def test_dates_are_days_and_truth_values_numbers():
    data = read_table(TABLE, targets=["cost"])
    seen = data.features.numeric[:, data.features.numeric_names.index("seen")]
    assert np.diff(seen).tolist() == [1, 1, 1, 1]
    assert data.features.numeric[:, data.features.numeric_names.index("smokes")][:3].tolist() == [1, 0, 1]


def test_dates_and_durations_read_alike_from_files_and_frames(csv_file):
    frame = TABLE.with_columns(stay=pl.Series([dt.timedelta(hours=12 * i) for i in range(6)]))
    data = read_table(frame, targets=["cost"])
    stay = data.features.numeric[:, data.features.numeric_names.index("stay")]
    assert stay.tolist() == [0, 0.5, 1, 1.5, 2]
    from_file = read_table(csv_file, targets=["cost"])
    assert "seen" in from_file.features.numeric_names
    assert np.array_equal(from_file.features.numeric, read_table(TABLE, targets=["cost"]).features.numeric, equal_nan=True)


def test_pandas_own_missing_marks_are_missing():
    frame = pd.DataFrame({
        "site": pd.array(["a", "b", None, "a", "b", "a"], dtype="string"),
        "x": pd.array([1, 2, 3, None, 5, 6], dtype="Int64"),
        "text": pd.array(["u", None, "v", "u", "v", "u"], dtype="string"),
        "flag": pd.array([0, 1, None, 1, 0, 1], dtype="Int64"),
        "cost": pd.array([0.5, 1.5, 2.5, None, 3.5, 4.5], dtype="Float64"),
    })  # fmt: skip
    shared = read_table(frame, targets=["flag", "cost"])
    assert [task.kind for task in shared.tasks] == ["binary", "regression"]
    assert np.isnan(shared.y[[2, 3], [0, 1]]).all()
    assert None in shared.features.categorical[:, shared.features.categorical_names.index("text")]
    own = read_table(frame, target="cost", by="site")
    assert [task.name for task in own.tasks] == ["a", "b"]


@pytest.mark.parametrize("columns", [["a", "a", "y"], ["a", 1, "y"]])
def test_odd_column_names_of_a_dataframe_are_refused(columns):
    frame = pd.DataFrame([[1.0, 2.0, 3.0], [2.0, 3.0, 4.5]], columns=columns)
    with pytest.raises(DataError):
        read_table(frame, targets=["y"])


def test_a_very_wide_header_is_read(tmp_path):
    path = tmp_path / "wide.csv"
    names = [f"gene_expression_{i:020d}" for i in range(3000)]
    rows = [",".join(str((i * j) % 7) for j in range(3000)) + f",{i}.5" for i in range(4)]
    path.write_text(",".join([*names, "y"]) + "\n" + "\n".join(rows) + "\n")
    assert read_table(path, targets=["y"]).features.n_columns == 3000


def test_a_column_that_is_nearly_numeric_gets_a_note(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("x, y\n" + "\n".join(f"{'-' if i == 7 else i},{i}.5" for i in range(30)) + "\n")
    data = read_table(path, targets=["y"])
    assert "column `x` was read as text" in data.notes[0]


def test_csv_parquet_polars_and_pandas_read_alike(tmp_path, csv_file):
    parquet, pandas = tmp_path / "table.parquet", pd.DataFrame(TABLE.to_dict(as_series=False))
    TABLE.write_parquet(parquet)
    semicolons = tmp_path / "semicolons.csv"
    TABLE.write_csv(semicolons, separator=";")
    options = TableOptions(drop=["seen"])
    whole = read_table(TABLE, target="cost", by="site", options=options)
    for source in (csv_file, str(csv_file), parquet, pandas, TABLE.to_arrow(), semicolons, nw.from_native(TABLE)):
        found = read_table(source, target="cost", by="site", options=options)
        # pandas has truth values with gaps as objects: they read as categories there, the rest must agree.
        assert found.tasks == whole.tasks
        assert np.array_equal(found.y, whole.y)
        assert np.array_equal(found.features.numeric[:, 0], whole.features.numeric[:, 0], equal_nan=True)


def test_numeric_task_names_sort_by_size_and_floats_read_as_whole_numbers():
    frame = pd.DataFrame({"group": [10.0, 2.0, 10.0, 2.0, None], "x": range(5), "y": [1.0, 2.0, 3.0, 4.0, 5.0]})
    data = read_table(frame, target="y", by="group")
    assert [task.name for task in data.tasks] == ["2", "10"]


def test_options_set_kind_metric_and_tasks_left_out():
    frame = pl.DataFrame({"x": [1, 2, 3, 4], "grade": [1, 2, 3, 1], "flag": [0, 1, 1, 0]})
    options = TableOptions(kind={"grade": "multiclass"}, metric={"flag": "accuracy"})
    data = read_table(frame, targets=["grade", "flag"], options=options)
    assert [(t.kind, t.classes, t.metric) for t in data.tasks] == [
        ("multiclass", (1, 2, 3), "accuracy"),
        ("binary", (0, 1), "accuracy"),
    ]
    only = read_table(frame, targets=["grade", "flag"], options=TableOptions(skip_tasks=["flag"]))
    assert [task.name for task in only.tasks] == ["grade"]
    assert only.features.names == ("x",)


def test_identifier_like_text_is_left_out_with_a_note():
    frame = pl.DataFrame({"id": [f"p{i}" for i in range(500)], "x": range(500), "y": [float(i) for i in range(500)]})
    data = read_table(frame, targets=["y"])
    assert data.features.names == ("x",)
    assert "column `id` was left out" in data.notes[0]


def test_rows_to_predict_read_in_the_trained_columns(csv_file):
    features, owners = read_rows(csv_file, ["age"], ["sex"], "ill")
    assert features.names == ("age", "sex")
    assert owners is not None
    assert owners.tolist() == ["no", "yes", "yes", "no", "no", "yes"]
    with pytest.raises(UnknownNameError, match="no column named `agee`; did you mean `age`"):
        read_rows(csv_file, ["agee"], [])
    with pytest.raises(DataError, match="column `sex` holds values that are not numbers"):
        read_rows(csv_file, ["sex"], [])
    with pytest.raises(DataError, match="column `site` is missing in row 4"):
        read_rows(csv_file, ["age"], [], "site")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "cost"}, "`target` comes with `by`"),
        ({"by": "site"}, "`target` comes with `by`"),
        ({}, "`target` comes with `by`"),
        ({"targets": ["cost"], "by": "site"}, "`targets` comes alone"),
        ({"targets": "cost"}, "give a list of column names"),
        ({"targets": []}, "`targets` is empty"),
        ({"target": "site", "by": "site"}, "two columns"),
        ({"targets": ["cots"]}, "no column named `cots`; did you mean `cost`"),
        ({"target": "cost", "by": "sit"}, "did you mean `site`"),
        ({"targets": ["cost"], "options": TableOptions(drop=["aeg"])}, "did you mean `age`"),
        ({"targets": ["cost", "cost"]}, "two tasks are named `cost`"),
        ({"targets": ["cost"], "options": TableOptions(kind="binry")}, "did you mean `binary`"),
        ({"targets": ["ill"], "options": TableOptions(metric={"il": "auc"})}, "no target named `il`; did you mean `ill`"),
        ({"targets": ["ill"], "options": TableOptions(kind="regression")}, "a regression target needs numbers"),
        ({"targets": ["cost"], "options": TableOptions(impute=False)}, "imputation is off"),
        ({"target": "cost", "by": "site", "options": TableOptions(skip_tasks=["c"])}, "no task named `c`"),
        ({"target": "cost", "by": "site", "options": TableOptions(skip_tasks=["a", "b"])}, "leaves no task"),
        ({"targets": ["cost", "ill", "age", "sex", "smokes", "seen", "site"]}, "no feature columns are left"),
    ],
)
def test_impossible_questions_are_refused(arguments, message):
    with pytest.raises(TaskloomError, match=message):
        read_table(TABLE, **arguments)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([1.0] * 6, "`t` is constant"),
        ([None] * 6, "`t` is missing in every row"),
        ([f"text {i}" for i in range(6)], None),
    ],
)
def test_targets_that_cannot_be_learned_are_refused(column, message):
    frame = TABLE.with_columns(t=pl.Series(column))
    if message is None:
        assert read_table(frame, targets=["t"]).tasks[0].kind == "multiclass"
        return
    with pytest.raises(DataError, match=message):
        read_table(frame, targets=["t", "cost"])


def test_a_constant_task_among_own_rows_is_named():
    frame = pl.DataFrame({"site": ["a", "a", "b", "b"], "x": [1, 2, 3, 4], "y": [1.0, 2.0, 3.0, 3.0]})
    with pytest.raises(DataError, match="task `b` is constant"):
        read_table(frame, target="y", by="site", options=TableOptions(kind="regression"))
    kept = read_table(frame, target="y", by="site", options=TableOptions(kind="regression", skip_tasks=["b"]))
    assert [task.name for task in kept.tasks] == ["a"]
    blank = frame.with_columns(y=pl.Series([1.0, 2.0, None, None]))
    with pytest.raises(DataError, match="task `b` is missing in every row"):
        read_table(blank, target="y", by="site", options=TableOptions(kind="regression"))


def _bytes_of(name, tmp_path):
    parquet = tmp_path / "whole.parquet"
    TABLE.write_parquet(parquet)
    return {
        "empty.csv": b"",
        "blank.csv": b"\n \n",
        "header.csv": b"a,b,c\n",
        "cut.csv": b"a,b,c\n1,2,3\n4,5",
        "short.csv": b"a,b,c\n1,2,3\n4,5\n1,2,3\n",
        "ragged.csv": b"a,b,c\n1,2,3\n4,5,6,7,8\n1,2,3\n",
        "twice.csv": b"a,b,a\n1,2,3\n",
        "one.csv": b"just some text\nand more\n",
        "image.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0",
        "latin.csv": "größe,b\n1,2\n".encode("latin-1"),
        "cut.parquet": parquet.read_bytes()[:-100],
        "text.parquet": b"a,b\n1,2\n",
    }[name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty.csv", "is empty"),
        ("blank.csv", "is empty"),
        ("header.csv", "no rows"),
        ("cut.csv", "row 3 has 2 fields, the header 3; the file is truncated"),
        ("ragged.csv", "not a table"),
        ("short.csv", "row 3 has 2 fields, the header 3"),
        ("twice.csv", "two columns are named `a`"),
        ("one.csv", "one column"),
        ("image.png", "not a table"),
        ("latin.csv", "not a table"),
        ("cut.parquet", "not a whole Parquet file"),
        ("text.parquet", "not a whole Parquet file"),
    ],
)
def test_files_that_are_no_tables_are_refused_in_one_sentence(name, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(_bytes_of(name, tmp_path))
    with pytest.raises(DataError, match=message) as caught:
        read_table(path, targets=["a"])
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_and_no_dataframe_is_refused(tmp_path):
    for stream in ("-", "/dev/null"):
        with pytest.raises(DataError, match="a stream; only files are read"):
            read_table(stream, targets=["a"])
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "none.csv", targets=["a"])
    with pytest.raises(DataError, match="give a path or a dataframe"):
        read_table([1, 2, 3], targets=["a"])
    with pytest.raises(OptionError, match="one string"):
        read_table(TABLE, targets="cost")


def test_quoted_line_breaks_are_no_truncation(tmp_path):
    path = tmp_path / "quoted.csv"
    path.write_text('a,b,y\n1,"two\nlines",1.5\n2,"x,y",2.5\n3,"last\nline",3.5\n', encoding="utf-8")
    assert read_table(path, targets=["y"]).labels(0).tolist() == [1.5, 2.5, 3.5]


def test_parkinsons_reads_as_42_patients(real_data):
    path = real_data / "parkinsons" / "parkinsons_updrs.data"
    data = read_table(path, target="total_UPDRS", by="subject#")
    assert (data.n_tasks, data.n_rows, data.is_shared) == (42, 5875, False)
    assert data.tasks[0].name == "1"
    assert all(task.kind == "regression" for task in data.tasks)


def test_all_constant_targets_are_named_and_idle_features_noted():
    columns = {"a": [1.0] * 6, "b": [None] * 6, "c": [1.0, 2.0, 3.5, 4.0, 5.0, 6.0], "x": range(6)}
    frame = pl.DataFrame(columns, schema_overrides={"b": pl.Float64})
    with pytest.raises(DataError, match=r"target `a` is constant .* and 1 more task cannot be used.*--skip-tasks a,b`"):
        read_table(frame, targets=["a", "b", "c"])
    data = read_table(frame, targets=["c"], options=TableOptions(kind="regression"))
    assert [note.split("`")[1] for note in data.notes] == ["a", "b"]
    assert all("says nothing" in note for note in data.notes)
