import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from taskloom.linear import LowRankRecipe
from taskloom.study import Study, StudyOptions, Verdict, study
from taskloom.study._charts import curve_chart, gain_chart, relation_chart
from taskloom.tasks import OutputError, Task, TaskData, load_diabetes_tasks

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def _text(html):
    return re.sub(r"\s+", " ", re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", html, flags=re.DOTALL))


def test_the_report_says_the_verdict_first_and_holds_every_number(small_study, tmp_path):
    html = small_study.report(tmp_path / "report.html").read_text()
    text = _text(html)
    headline = small_study.words()[0].replace("`", "")
    assert text.index(headline.split()[0]) < text.index("Scores") < text.index("Cost") < text.index("Exact settings")
    for verdict in small_study.verdicts:
        assert f"{verdict.gain:+.4f}" in text
        assert f"{verdict.baseline_score:.4f}" in text
    assert "Nadeau" in text
    columns = list(load_diabetes_tasks("age_groups").features.names)
    assert small_study.to_json()["data"]["columns"] == columns
    assert ", ".join(columns) in text


def test_the_report_needs_no_other_file_and_no_network(small_study, tmp_path):
    html = small_study.report(tmp_path / "report.html").read_text()
    outside = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:|//|\.?/)""", outside)


def test_names_from_the_table_are_escaped(tmp_path):
    groups = load_diabetes_tasks("age_groups")
    wicked = "<script>alert('x')</script>"
    tasks = (replace(groups.tasks[0], name=wicked), *groups.tasks[1:])
    data = TaskData(tasks, groups.features, groups.y, groups.task_of_row, groups.by, ("a note with <b>tags</b>",))
    html = study(data, ["ridge"], seeds=1, options=StudyOptions(cache=False)).report(tmp_path / "r.html").read_text()
    assert wicked not in html
    assert "<b>tags</b>" not in html


def test_charts_show_names_letter_by_letter():
    groups = load_diabetes_tasks("age_groups")
    tasks = (replace(groups.tasks[0], name="<b>bold</b>"), *groups.tasks[1:])
    data = TaskData(tasks, groups.features, groups.y, groups.task_of_row, "<b>by</b>")
    result = study(data, ["ridge", LowRankRecipe(title="<b>mine</b>")], seeds=3, options=StudyOptions(budget=1, cache=False))
    gains = gain_chart(result, result.verdicts_of("<b>mine</b>"))
    assert "&lt;b>bold&lt;/b>" in gains.layout.yaxis.categoryarray
    assert gains.layout.yaxis.title.text == "&lt;b>by&lt;/b>"
    name = next(iter(result.units[-1].relations))
    for chart in (gains, relation_chart(result, "<b>mine</b>", name), curve_chart(result)):
        assert not re.search(r"(<|\\u003c)b(>|\\u003e)", chart.to_json())


def far_from_all_others(gains):
    """A study of as many tasks as gains, whose verdicts have them."""
    tasks = tuple(Task(f"t{i}") for i in range(len(gains)))
    info = {"by": "site", "shape": "own rows", "n_rows": 9, "n_columns": 1, "labels": [], "notes": []}
    outcome = Study(tasks, info, [], [0, 1, 2], StudyOptions(), [])
    words = ["hurt" if gain < -1 else "helped" if gain > 1 else "undecided" for gain in gains]
    ends = [(gain - max(0.02, abs(gain) / 4), gain + max(0.02, abs(gain) / 4)) for gain in gains]
    return outcome, [
        Verdict("joint", task.name, 1 + gain, "single", 1.0, gain, low, high, 0.2, 0.4, word)
        for task, gain, (low, high), word in zip(tasks, gains, ends, words, strict=True)
    ]


@pytest.mark.parametrize("n_tasks", [4, 6, 139])
def test_one_task_far_from_all_others_is_an_arrow_and_leaves_the_rest_readable(n_tasks):
    usual = np.random.default_rng(0).uniform(-0.1, 0.1, n_tasks - 1).tolist()
    figure = gain_chart(*far_from_all_others([*usual, -40.0]))
    low, high = figure.layout.xaxis.range
    assert -1 < low < min(usual)
    assert max(usual) < high < 1
    (arrow,) = (trace for trace in figure.data if trace.marker.symbol == "arrow-left")
    assert [low < x < 0 for x in arrow.x] == [True]
    assert arrow.y == (f"t{n_tasks - 1}",)
    assert arrow.text[0].strip() == "-40"
    # The hover tells the gain and the score as they are, not where the arrow is.
    assert arrow.customdata[0][1] == -39.0
    assert arrow.customdata[0][3] == -40.0
    assert "gain %{customdata[3]" in arrow.hovertemplate
    assert "gains beyond this window, as arrows at its edge: 1" in figure.layout.xaxis.title.text
    assert sorted(x for trace in figure.data if trace is not arrow for x in trace.x) == sorted(usual)


def test_arrows_point_to_the_side_on_which_the_gain_is_and_keep_the_colour_of_the_verdict():
    figure = gain_chart(*far_from_all_others([0.1, -0.1, 0.05, 0.02] * 5 + [7.0, -8.0]))
    found = {trace.name: trace for trace in figure.data}
    helped, hurt = found["helped, beyond this window"], found["hurt, beyond this window"]
    assert (helped.marker.symbol, helped.x[0] > 0, helped.text[0].strip()) == ("arrow-right", True, "+7")
    assert (hurt.marker.symbol, hurt.x[0] < 0, hurt.text[0].strip()) == ("arrow-left", True, "-8")
    assert helped.marker.color != hurt.marker.color
    assert figure.layout.xaxis.range[0] < hurt.x[0] < helped.x[0] < figure.layout.xaxis.range[1]


def test_nothing_is_cut_where_no_task_is_far_from_the_others():
    for gains in ([0.1], [0.0, 0.0, 0.0, 0.0], [0.1, 0.3], [0.1, 0.2, -0.1, 0.25, 0.15], [0.1, -40.0, 0.2]):
        figure = gain_chart(*far_from_all_others(gains))
        assert figure.layout.xaxis.range is None
        assert "beyond" not in figure.layout.xaxis.title.text
        assert sorted(x for trace in figure.data for x in trace.x) == sorted(gains)


def test_a_place_that_cannot_be_written_is_refused_and_nothing_is_left(small_study, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        small_study.save_results(tmp_path / "file" / "results.json")
    with pytest.raises(OutputError, match="cannot be written"):
        small_study.report(tmp_path / "file" / "deep" / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert small_study.report(tmp_path / "new" / "report.html").stat().st_size > 1e6


def test_words_and_tables_of_a_study_without_comparison(tmp_path):
    result = study(load_diabetes_tasks(), ["ridge"], seeds=1, options=StudyOptions(cache=False))
    assert "nothing to compare yet" in result.words()[0]
    assert result.table().row_count == 1
    assert "Only single-task baselines" in repr(Study.from_json(result.to_json()))


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_draws_the_charts_without_a_complaint(small_study, tmp_path):
    path = small_study.report(tmp_path / "report.html")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
        "--window-size=1000,2400", "--virtual-time-budget=8000", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert complaints == []
    body = done.stdout.split("</head>", 1)[1]
    # plotly puts one drawn svg of this class into every chart, and one point for every task into the gain chart.
    for name in ("gain-2", "curves"):
        chart = body.split(f'id="{name}"', 1)[1]
        assert "main-svg" in chart
    gains = body.split('id="gain-2"', 1)[1].split('id="curves"', 1)[0]
    assert len(re.findall(r'<path class="point[ "]', gains)) >= 6
    assert len(re.findall(r'class="[xy]error"|class="xerror"', gains)) >= 6
    for task in small_study.tasks:
        assert task.name in gains
