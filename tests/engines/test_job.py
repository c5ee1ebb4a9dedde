"""Job files and site files: what they may say, what is refused and how, and the rows that come of them."""

import json
import pickle

import numpy as np
import polars as pl
import pytest
from engine_jobs import make_pairs, problem_of, write_job

from taskloom.engines import Feature, SiteFile, load_rows, make_job_site, read_job, read_site_file
from taskloom.linear import L21, Fused, Graph, MeanRegularized, Trace
from taskloom.tasks import DataError, OptionError, TaskloomError, UnknownNameError

JOB = {"sites": {"north": ["a", "b"], "south": {"tasks": ["c"]}}, "features": ["x", "z"], "penalty": {"trace": 0.1}}
YAML = """
name: wards
sites:
  no: [ward 1, 2]
  south: {tasks: [c], data: tables/south.csv, target: score, by: ward}
features: [age, {name: weight, center: 70.5, scale: 12}]
penalty: {l21: 1e-2}
loss: logistic
classes: [no, yes]
tol: 1e-5
out: result
"""


def test_a_job_file_is_read_as_people_mean_it(tmp_path):
    (tmp_path / "job.yml").write_text(YAML, encoding="utf-8")
    job = read_job(tmp_path / "job.yml")
    assert job.sites == {"no": ("ward 1", "2"), "south": ("c",)}
    assert job.features == (Feature("age"), Feature("weight", 70.5, 12.0))
    assert (job.tol, job.classes, job.make_penalty()) == (1e-5, ("no", "yes"), L21(0.01))
    assert (job.out, job.checkpoint) == (tmp_path / "result", tmp_path / "result" / "checkpoint")
    assert job.tables == {"south": SiteFile("south", tmp_path / "tables" / "south.csv", "score", "ward")}
    assert (job.tasks, job.columns) == (["ward 1", "2", "c"], {"no": [0, 1], "south": [2]})


def test_what_is_not_said_has_a_default_beside_the_file(tmp_path):
    (tmp_path / "wards.yml").write_text(json.dumps(JOB), encoding="utf-8")
    job = read_job(tmp_path / "wards.yml")
    assert (job.name, job.out) == ("wards", tmp_path / "wards-result")
    assert (job.method, job.loss, job.min_sites, job.tables) == ("local-prox", "squared", 1, {})


def test_a_job_travels_as_plain_values_without_its_tables(tmp_path):
    job = write_job(tmp_path, make_pairs())
    assert read_job(json.loads(json.dumps(job.to_dict(tables=True)))) == job
    told = json.dumps(job.to_dict())
    assert "parquet" not in told
    again = read_job(json.loads(told))
    assert (again.sites, again.tables) == (job.sites, {})
    assert pickle.loads(pickle.dumps(job)) == job  # noqa: S301 - our own bytes


@pytest.mark.parametrize(
    ("given", "penalty"),
    [
        ({"trace": 0.1}, Trace(0.1)),
        ({"mean": 2}, MeanRegularized(2.0)),
        ({"fused": {"fusion": 1, "sparsity": 0.5}}, Fused(1, 0.5)),
        ({"fused": 3}, Fused(3.0)),
        ({"trace": {"strength": 0.5}}, Trace(0.5)),
    ],
)
def test_penalties_are_named_with_a_strength_or_with_their_fields(given, penalty):
    assert read_job(JOB | {"penalty": given}).make_penalty() == penalty


def test_penalties_add_up_and_take_matrices():
    smooth, rest = read_job(JOB | {"penalty": {"trace": 0.1, "ridge": 0.01}}).make_penalty().split()
    assert (smooth[0].strength, rest) == (0.01, Trace(0.1))
    chain = [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    graph = read_job(JOB | {"penalty": {"graph": {"affinity": chain}}}).make_penalty()
    assert isinstance(graph, Graph)
    np.testing.assert_array_equal(graph.affinity, chain)


def test_what_numpy_holds_becomes_plain_values():
    chain = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    job = read_job(JOB | {"penalty": {"graph": {"affinity": chain}}, "max_updates": np.int64(50), "tol": np.float64(1e-3)})
    assert read_job(json.loads(json.dumps(job.to_dict()))) == job
    np.testing.assert_array_equal(job.make_penalty().affinity, chain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"penlty": 1}, "no key of a job named `penlty`; did you mean `penalty`"),
        ({"tables": {}}, "no key of a job named `tables`"),
        ({"sites": None}, "`sites` is missing"),
        ({"sites": {}}, "`sites`={}: need the tasks of each site"),
        ({"sites": {"a": "x"}}, "`sites.a`='x': need a list of names"),
        ({"sites": {"a": []}}, r"`sites.a`=\[\]: need a list of names"),
        ({"sites": {"a": ["x", "x"]}}, "`sites.a` names 'x' twice"),
        ({"sites": {"a": ["x"], "b": ["x"]}}, "task 'x' is held by a, b; a task is one site's"),
        ({"sites": {"a": {"taks": ["x"]}}}, "no key of site `a` named `taks`; did you mean `tasks`"),
        ({"sites": {"a": {"tasks": ["x"], "by": "s"}}}, "`sites.a.data`=None: need the path"),
        (
            {"sites": {"a": {"tasks": ["x"], "data": "f", "by": "s", "targets": ["x"]}}},
            "`targets` comes without `target` and `by`",
        ),
        ({"sites": {"a": {"tasks": ["x"], "data": "f", "targets": 3}}}, "`sites.a.targets`=3: need a list"),
        ({"sites": {1: ["a"], "1": ["b"]}}, "`sites` names '1' twice"),
        ({"sites": {"a": {"tasks": ["x"], "data": "f\0g", "target": "y"}}}, r"`sites.a.data`='f\\x00g': need the path"),
        ({"sites": {"a": {"tasks": ["x"], "data": "f", "columns": []}}}, r"`sites.a.columns`=\[\]: need a list of names"),
        ({"sites": {"a": {"tasks": ["x"], "data": "f"}}}, "site 'a': which column holds the labels"),
        ({"sites": {"a": {"tasks": ["x", "y"], "data": "f", "target": "z"}}}, "site 'a' has 2 tasks: which column names them"),
        ({"sites": {"a": {"tasks": ["x"], "data": "f", "targets": {"xx": "y"}}}}, "no task of site a named `xx`"),
        ({"sites": {"a": {"tasks": ["x", "y"], "data": "f", "targets": ["x"]}}}, "has no column for task 'y'"),
        ({"features": "x"}, "`features`='x': need a list of columns"),
        ({"features": ["x", "x"]}, "`features` names 'x' twice"),
        ({"features": [True]}, "`features`=True: need a name"),
        ({"features": [{"name": "x", "centre": 1}]}, "no key of a feature named `centre`; did you mean `center`"),
        ({"features": [{"name": "x", "scale": 0}]}, "`features.x.scale`=0.0: need a number above 0"),
        ({"features": [{"name": "x", "center": "0"}]}, "`features.x.center`='0': need a number"),
        ({"penalty": {}}, "`penalty`={}: need a strength by name"),
        ({"penalty": {"trac": 1}}, "no penalty named `trac`; did you mean `trace`"),
        ({"penalty": {"trace": "0.1"}}, "`penalty.trace`='0.1': need a number of 0 or more"),
        ({"penalty": {"trace": -1}}, "`penalty.trace`=-1: need a number of 0 or more"),
        ({"penalty": {"fused": {"fusoin": 1}}}, "no key of penalty `fused` named `fusoin`; did you mean `fusion`"),
        ({"penalty": {"graph": {"affinity": [[1, 2], [3]]}}}, "`penalty.graph`: .*correct its fields"),
        ({"penalty": {"graph": {"affinity": [[0, 1], [1, 0]]}}}, r"shape \(2, 2\) for 3 tasks"),
        ({"penalty": {"l1": 1, "trace": 1}}, "no exact proximal map"),
        ({"loss": "sqared"}, "no loss named `sqared`; did you mean `squared`"),
        ({"loss": "poisson"}, "no loss named `poisson`"),
        ({"classes": [1]}, r"`classes`=\[1\]: need two labels"),
        ({"classes": [1, 1]}, "need two labels that differ"),
        ({"classes": [0, 0.0]}, "need two labels that differ"),
        ({"classes": [float("nan"), 1]}, "`classes` holds nan; "),
        ({"classes": [[0], 1]}, r"`classes`=\[0\]: need a name"),
        ({"scale": "men"}, "no scale named `men`; did you mean `mean`"),
        ({"method": "amlt"}, "no method named `amlt`; did you mean `amtl`"),
        ({"fit_intercept": 1}, "`fit_intercept`=1: need true or false"),
        ({"tol": "1e-6"}, "`tol`='1e-6': need a number of 0 or more"),
        ({"step": 0}, "`step`=0: need a number above 0"),
        ({"relaxation": 2}, "`relaxation`=2: need a number above 0 and below 2"),
        ({"max_updates": 1.5}, "`max_updates`=1.5: need a whole number"),
        ({"max_rounds": 0}, "`max_rounds`=0: need a whole number"),
        ({"min_sites": 3}, "`min_sites`=3: there are only 2 sites"),
        ({"max_norm": 0}, "`max_norm`=0: need a number above 0"),
        ({"patience": True}, "`patience`=True: need a number above 0"),
        ({"patience": 1e12}, r"`patience`=1000000000000.0: need a number above 0 and of at most 1e\+06"),
        ({"out": 5}, "`out`=5: need the path of a folder"),
        ({"out": "a\0"}, r"`out`='a\\x00': need the path of a folder"),
        ({"name": ""}, "`name`='': need a name"),
    ],
)
def test_a_bad_job_is_refused_with_the_key_and_the_remedy(change, message):
    with pytest.raises((OptionError, UnknownNameError), match=message):
        read_job(JOB | change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "line 1: expected ',' or ']'"),
        ("loss: squared\nloss: huber", "line 2: the key 'loss' comes twice"),
        ("- 1", "holds list; need keys and values"),
        ("? [1]\n: 2", "a key must be a word or a number"),
        ("a: !!python/object:os.system 1", "could not determine a constructor"),
        ("", "holds NoneType"),
        ("tol: !!float abc", "cannot be read as YAML"),
        ("max_updates: !!int x", "cannot be read as YAML"),
        ("fit_intercept: !!bool maybe", "cannot be read as YAML"),
        ("name: !!timestamp x", "cannot be read as YAML"),
        ("sites: !!map [1]", "cannot be read as YAML"),
        ("max_updates: " + "9" * 5000, "cannot be read as YAML"),
        ("sites: " + "[" * 1500, "cannot be read as YAML"),
    ],
)
def test_a_file_that_is_no_job_is_refused_with_the_line(text, message, tmp_path):
    path = tmp_path / "job.yml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(OptionError, match=message):
        read_job(path)
    path.write_bytes(b"a: \xff\xfe")
    with pytest.raises(OptionError, match="cannot be read as YAML"):
        read_job(path)
    for absent in (tmp_path / "none.yml", tmp_path):
        with pytest.raises(OptionError, match="give a YAML file"):
            read_job(absent)


def test_a_site_file_stays_with_its_site(tmp_path):
    (tmp_path / "site.yml").write_text("site: north\ndata: north.csv\ntarget: score\nby: school\n", encoding="utf-8")
    assert read_site_file(tmp_path / "site.yml") == SiteFile("north", tmp_path / "north.csv", "score", "school")
    for given, message in (
        ({"site": "a"}, "`data` is missing"),
        ({"data": "a.csv"}, "`site` is missing"),
        ({"site": "a", "data": ""}, "`sites.a.data`='': need the path"),
        ({"site": "a", "data": "a.csv", "traget": "y"}, "no key of a site's file named `traget`; did you mean `target"),
    ):
        with pytest.raises(TaskloomError, match=message):
            read_site_file(given)


def one_site(tmp_path, frame, tasks=("a",), features=("x",), table=None, **job):
    """A job of one site, and its table on disk."""
    frame.write_parquet(tmp_path / "t.parquet")
    settings = {"sites": {"s": list(tasks)}, "features": list(features), "penalty": {"ridge": 1.0}}
    return read_site_file({"site": "s", "data": str(tmp_path / "t.parquet")} | (table or {})), read_job(
        settings | job, tmp_path
    )


FRAME = pl.DataFrame(
    {
        "x": [1.0, 2.0, 3.0, 4.0],
        "z": [0, 1, 0, 1],
        "of": ["a", "b", "a", "b"],
        "y": [1.0, 2.0, None, 4.0],
        "word": ["u", "v", "w", "u"],
    }
)


def test_rows_are_those_of_the_site_in_the_order_of_the_job(tmp_path):
    features = ["z", {"name": "x", "center": 1.0, "scale": 2.0}]
    site, job = one_site(tmp_path, FRAME, ["b", "a"], features, {"target": "y", "by": "of"})
    b, a = load_rows(site, job)
    np.testing.assert_allclose(b.X, [[1, 0.5], [1, 1.5]])
    np.testing.assert_array_equal(b.y, [2.0, 4.0])
    np.testing.assert_array_equal(a.y, [1.0])
    np.testing.assert_allclose(b.weight, 0.5)
    assert make_job_site(site, job).join().curvature.shape == (2,)


def test_a_column_of_labels_for_each_task_and_a_site_of_one_task(tmp_path):
    site, job = one_site(tmp_path, FRAME, ["a", "b"], ["x"], {"targets": {"a": "y", "b": "z"}})
    a, b = load_rows(site, job)
    assert (len(a.y), len(b.y)) == (3, 4)
    site, job = one_site(tmp_path, FRAME, ["a"], ["x"], {"target": "y"})
    assert len(load_rows(site, job)[0].y) == 3


def test_the_job_names_columns_for_sites_that_do_not(tmp_path):
    site, job = one_site(tmp_path, FRAME, ["a", "b"], ["x"], target="y", by="of")
    assert [len(rows.y) for rows in load_rows(site, job)] == [1, 2]


def test_a_site_gives_jobs_the_columns_that_its_file_names(tmp_path):
    site, job = one_site(tmp_path, FRAME, ["a", "b"], ["x"], {"target": "y", "by": "of", "columns": ["x", "z"]})
    assert site.columns == ("x", "z")
    assert [len(rows.y) for rows in load_rows(site, job)] == [1, 2]
    assert read_site_file(site.to_dict()) == site
    site, job = one_site(tmp_path, FRAME, ["a", "b"], ["x"], {"targets": {"a": "y", "b": "z"}, "columns": ["x"]}, target="word")
    assert [len(rows.y) for rows in load_rows(site, job)] == [3, 4]


@pytest.mark.parametrize(("labels", "classes"), [(["no", "yes"], ["no", "yes"]), ([0, 1], [0, 1]), ([-1.0, 1.0], [-1, 1])])
def test_classes_are_told_by_the_job(labels, classes, tmp_path):
    frame = pl.DataFrame({"x": [1.0, 2.0, 3.0], "y": [labels[0], labels[1], labels[1]]})
    site, job = one_site(tmp_path, frame, table={"target": "y"}, loss="logistic", classes=classes)
    np.testing.assert_array_equal(load_rows(site, job)[0].y, [-1, 1, 1])


def test_task_names_are_found_however_they_are_written(tmp_path):
    (tmp_path / "t.csv").write_text("x,of,y\n1,007,1\n2,007,2\n", encoding="utf-8")
    site = read_site_file({"site": "s", "data": "t.csv"}, tmp_path)
    job = read_job({"sites": {"s": [7]}, "features": ["x"], "penalty": {"ridge": 1}, "target": "y", "by": "of"})
    assert len(load_rows(site, job)[0].y) == 2


@pytest.mark.parametrize(
    ("table", "features", "job", "message"),
    [
        ({"target": "y", "by": "of"}, ["xx"], {}, "no column named `xx`; did you mean `x`"),
        ({"target": "yy", "by": "of"}, ["x"], {}, "no column named `yy`"),
        ({"target": "y", "by": "off"}, ["x"], {}, "no column named `off`; did you mean `of`"),
        ({"target": "y", "by": "of"}, ["word"], {}, "`word` holds values that are not numbers"),
        ({"target": "y", "by": "of"}, ["x", "y"], {}, "column `y` is the label or the task of site 's'"),
        ({"target": "y", "by": "word"}, ["x"], {}, "has no row of task 'a' in column `word`"),
        ({"by": "of"}, ["x"], {}, "which column holds the labels"),
        ({"target": "y"}, ["x"], {}, "has 2 tasks: which column names them"),
        ({"targets": {"a": "y"}}, ["x"], {}, "no column for task 'b'"),
        ({"targets": {"a": "y", "b": "z", "c": "z"}}, ["x"], {}, "no task of site s named `c`"),
        ({"target": "y", "by": "of"}, ["x"], {"loss": "logistic"}, "holds '2', none of the job's `classes`"),
        ({"targets": {"a": "z", "b": "word"}}, ["x"], {}, "`word` holds values that are not numbers"),
        ({"target": "y", "by": "of", "columns": ["x"]}, ["x", "z"], {}, "site 's' does not give column `z` to jobs"),
        ({"by": "of", "columns": ["x"]}, ["x"], {"target": "z"}, "site 's' does not give column `z` to jobs"),
        ({"target": "y", "columns": ["x"]}, ["x"], {"by": "of"}, "site 's' does not give column `of` to jobs"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_by_its_site(table, features, job, message, tmp_path):
    site, job = one_site(tmp_path, FRAME, ["a", "b"], features, table, **job)
    with pytest.raises(TaskloomError, match=message):
        load_rows(site, job)


def test_missing_features_and_labels_are_refused(tmp_path):
    site, job = one_site(
        tmp_path, FRAME.with_columns(x=pl.Series([1.0, None, 3.0, 4.0])), ["a", "b"], table={"target": "z", "by": "of"}
    )
    with pytest.raises(DataError, match="feature `x` is missing or infinite in 1 of 2 rows of task 'b'"):
        load_rows(site, job)
    site, job = one_site(tmp_path, FRAME.with_columns(y=pl.lit(None, pl.Float64)), ["a"], table={"target": "y"})
    with pytest.raises(DataError, match="task 'a' has no label at all"):
        load_rows(site, job)
    site, job = one_site(tmp_path, FRAME.head(1), ["a"], table={"target": "z"}, loss="logistic")
    with pytest.raises(DataError, match="takes labels -1 and \\+1, both"):
        load_rows(site, job)
    with pytest.raises(UnknownNameError, match="no site of the job named `t`"):
        load_rows(SiteFile("t", site.data), job)
    with pytest.raises(DataError, match="no such file"):
        load_rows(SiteFile("s", tmp_path / "none.csv", "y"), job)


def test_the_problem_of_all_sites_is_that_of_the_tables(tmp_path):
    pairs = make_pairs()
    problem = problem_of(write_job(tmp_path, pairs))
    assert (problem.n_tasks, problem.n_features) == (6, 5)
    assert sum(len(y) for _, y in pairs) == sum(len(rows.y) for rows in _all_rows(tmp_path, pairs))


def _all_rows(folder, pairs):
    job = write_job(folder, pairs)
    return [each for site in job.sites for each in load_rows(job.tables[site], job)]
