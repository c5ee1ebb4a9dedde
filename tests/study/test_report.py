import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from taskloom.linear import LowRankRecipe
from taskloom.study import Study, StudyOptions, study
from taskloom.study._charts import curve_chart, gain_chart, relation_chart
from taskloom.tasks import OutputError, TaskData, load_diabetes_tasks

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
