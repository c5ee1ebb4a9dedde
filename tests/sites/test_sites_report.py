"""What a user sees of a run: the report, the live view, and the demonstration's numbers."""

import io
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from taskloom.linear import Trace, certify
from taskloom.sites import METHODS, Faults, OffsetDelays, Trip, fit
from taskloom.sites._charts import MOST_POINTS, MOST_ROWS, Scale, curves, gap_chart, wait_chart, window
from taskloom.sites._data import LossOptions, read_sites
from taskloom.sites._demo import DemoOptions, demo_tasks, run_demo
from taskloom.sites._live import live_view
from taskloom.sites._report import check_report, render_report, write_report
from taskloom.sites._timeline import compare_runs, describe_runs, timeline, under_way
from taskloom.tasks import OptionError, OutputError, UnknownNameError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BOTH = ("local-prox", "smtl-fista")


@pytest.fixture(scope="module")
def runs():
    return run_demo(DemoOptions(transport="simulated"))


def text_of(html):
    return unescape(re.sub(r"\s+", " ", re.sub(r"<style.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL)))


def test_away_and_waiting_fill_the_time_of_a_site_without_overlap(runs):
    for result in runs.values():
        for site in result.sites:
            each, mine = timeline(result.trips, site), [trip for trip in result.trips if trip.site == site]
            spans = np.concatenate([each.away, each.waits])
            spans = spans[spans[:, 0].argsort()]
            assert np.allclose(spans[1:, 0], spans[:-1, 1], atol=1e-12)
            assert np.isclose(np.diff(spans).sum(), mine[-1].arrived_at - mine[0].asked_at)


def test_in_a_synchronous_run_all_wait_for_the_slow_site_and_it_for_nobody(runs):
    waited = {site: timeline(runs["smtl-fista"].trips, site).waited for site in runs["smtl-fista"].sites}
    slow = waited.pop("site 8")
    assert slow < 0.05
    assert min(waited.values()) > 0.6
    assert all(timeline(runs["local-prox"].trips, site).waited < 0.2 for site in runs["local-prox"].sites)


def test_a_trip_of_unknown_start_is_left_out():
    trips = [Trip("a", np.nan, 1.0, 1, 0, 1.0), Trip("a", 2.0, 3.0, 2, 0, 1.0), Trip("b", 0.0, 9.0, 3, 0, 1.0)]
    each = timeline(trips, "a")
    assert each.away.tolist() == [[2.0, 3.0]]
    assert each.waits.tolist() == [[1.0, 2.0]]
    assert timeline(trips, "c").waited == 0


def test_a_comparison_names_the_time_to_a_gap_and_who_never_got_there(runs):
    fast, slow = compare_runs(runs)
    assert (fast.level, slow.level) == (1e-6, 1e-6)
    assert fast.reached < slow.reached <= slow.seconds
    assert fast.slowest < fast.fastest
    assert slow.slowest == slow.fastest
    assert f"local-prox {fast.reached:.2f} s, smtl-fista" in describe_runs([fast, slow])
    lame = fit(demo_tasks(3), Trace(0.1), transport="simulated", delays=1.0, max_rounds=3)
    both = compare_runs(runs | {"lame": lame})
    assert np.isnan(both[-1].reached)
    assert f"not reached by lame ({lame.gap:.1e})" in describe_runs(both)


def test_the_time_that_sites_take_to_come_up_counts_for_nobody():
    late = fit(demo_tasks(8), Trace(0.1), transport="simulated", delays=0.01, gap=1e-6)
    before, began = compare_runs({"late": late})[0], under_way(late)
    for each in late.trips:
        each.asked_at, each.arrived_at = each.asked_at + 50, each.arrived_at + 50
    for look in late.looks:
        look.time += 50
    late.seconds += 50
    assert under_way(late) == pytest.approx(began + 50)
    after = compare_runs({"late": late})[0]
    assert np.allclose((after.seconds, after.reached, after.waited), (before.seconds, before.reached, before.waited))
    time, _ = curves({"late": late}).lines["late"]
    assert 0 <= time[0] < time[-1] == pytest.approx(after.seconds)


def test_runs_whose_gap_nobody_knows_are_compared_by_residual(runs):
    blind = fit(demo_tasks(3), Trace(0.1), transport="simulated", delays=1.0)
    for look in blind.looks:
        look.certificate = None
    shown = curves({"blind": blind, **runs})
    assert shown.label.startswith("residual")
    assert shown.lines["blind"][1][-1] < 1e-6
    assert describe_runs(compare_runs({"blind": blind})) == ""
    html = render_report({"blind": blind})
    assert "Residual, relative to the norm of V against time" in html
    assert "C" + blind.message[1:] in text_of(html)


class Checker(HTMLParser):
    """Complains about tags that do not close, and collects where links and images lead."""

    VOID = ("meta", "link", "br")

    def __init__(self):
        super().__init__()
        self.open, self.targets, self.labels = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.targets += [value for name, value in attrs if name in ("src", "href", "action")]
        self.labels += [value for name, value in attrs if name == "aria-label"]

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_is_small_whole_offline_and_can_be_read_without_seeing_it(runs, tmp_path):
    path = write_report(runs, tmp_path / "new" / "report.html", about="Eight <wards>.")
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]
    html = path.read_text(encoding="utf-8")
    assert len(html) < 100_000
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    assert checker.targets == ["data:,"]
    assert "<script" not in html
    assert "prefers-color-scheme: dark" in html
    assert len(checker.labels) == 3
    assert "relative gap against time" in checker.labels[0]
    assert re.search(r"site 1 waited or was away in vain \d+ % of its time", checker.labels[2])
    text = text_of(html)
    assert "&lt;wards&gt;" in html
    assert "Eight <wards>." in text
    for name, result in runs.items():
        assert f"{name} {result.seconds:.2f}" in text
        assert all(f"{site} {record.updates} " in text for site, record in result.sites.items())


def test_the_report_escapes_names_and_tells_what_failed(tmp_path):
    tasks = {f"<b>{name}</b>": pair for name, pair in demo_tasks(3).items()}
    result = fit(tasks, Trace(0.1), transport="simulated", delays=1.0, gap=1e-4)
    result.notes = ["site <i>far</i>: ZeroDivisionError"]
    html = render_report({"<script>": result})
    assert not re.search(r"<(script|b|i)>", html)
    assert "ZeroDivisionError" in html
    assert "&lt;b&gt;site 1&lt;/b&gt;" in html


def test_long_runs_of_many_sites_stay_small(tmp_path):
    K = MOST_ROWS + 7
    tasks = {name: (X[:25, :4], y[:25]) for name, (X, y) in demo_tasks(K).items()}
    law = OffsetDelays(1.0, slow={"site 1": 300})
    result = fit(tasks, Trace(0.1), transport="simulated", delays=law, max_updates=3000, tol=0, look_every=4)
    html = render_report({"long": result})
    assert len(html) < 600_000
    assert "7 sites with more updates are in the table alone" in html
    assert len(curves({"long": result}).lines["long"][0]) <= MOST_POINTS


def test_a_run_without_updates_or_with_faults_still_has_a_report():
    result = fit(demo_tasks(2), Trace(0.1), transport="simulated", faults=Faults(loss=0.2), delays=1.0, max_rounds=20)
    assert "seen before or refused" in render_report({"faulty": result})
    result.trips, result.looks = [], []
    assert window({"empty": result}) == 0
    assert under_way(result) == 0
    assert wait_chart(result, 0.0) == gap_chart(curves({"empty": result})) == ""
    assert result.message[1:] in text_of(render_report({"empty": result}))


@pytest.mark.parametrize("low", [0.0, 0.3, 17.0])
@pytest.mark.parametrize("length", [1e-3, 0.08, 1.0, 4.93, 700.0])
def test_ticks_are_round_within_and_few(low, length):
    ticks = Scale(low, low + length, 0, 100).ticks()
    assert 2 <= len(ticks) <= 10
    assert all(low - 1e-9 <= tick <= low + length + 1e-9 for tick in ticks)
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_places_keep_the_order_and_the_ends():
    scale = Scale(1e-6, 1.0, 300, 0, is_log=True)
    assert scale(np.array([1e-6, 1e-3, 1.0])).tolist() == pytest.approx([300, 150, 0])
    assert len(Scale(1e-15, 1.0, 0, 1, is_log=True).ticks()) <= 9


def test_a_report_that_cannot_be_is_refused_before_it_is_written(runs, tmp_path):
    with pytest.raises(OptionError, match=r"`results` is empty; give at least one run"):
        write_report({}, tmp_path / "report.html")
    with pytest.raises(OutputError, match="is a folder; name a file"):
        write_report(runs, tmp_path)
    (tmp_path / "file").write_text("")
    for act in (check_report, lambda path: write_report(runs, path)):
        with pytest.raises(OutputError, match=r"cannot be written .*; choose another"):
            act(tmp_path / "file" / "report.html")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file"]


def test_the_live_view_shows_every_site_on_a_terminal_and_nothing_in_a_pipe():
    drawn, piped = io.StringIO(), io.StringIO()
    ticks = iter(np.arange(0, 1e6, 0.25))
    for out, terminal in ((drawn, True), (piped, False)):
        console = Console(file=out, force_terminal=terminal, width=100)
        with live_view("four sites", console=console, clock=lambda: next(ticks)) as view:
            result = fit(demo_tasks(4), Trace(0.1), transport="simulated", delays=1.0, callback=view, gap=1e-6)
    assert piped.getvalue() == ""
    shown = drawn.getvalue()
    assert all(part in shown for part in ("four sites", "staleness", "last seen", "waited", *result.sites))
    # The last picture is that of the end, and the cursor is there again.
    assert f"{result.updates} updates" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_the_live_view_is_drawn_seldom_and_counts_waiting_as_the_report_does():
    out, calls = io.StringIO(), []
    with live_view("x", console=Console(file=out, force_terminal=True, width=100), clock=lambda: 0.0) as view:

        def both(session):
            calls.append(session.now)
            view(session)

        result = fit(demo_tasks(4), Trace(0.1), method="smtl", transport="simulated", delays=1.0, callback=both, max_rounds=9)
    assert out.getvalue().count("updates, residual") < len(calls) / 2
    waited = [timeline(result.trips, site).waited for site in result.sites]
    shown = [int(each) for each in re.findall(r"(\d+) %", out.getvalue())[-4:]]
    assert np.allclose(shown, 100 * np.array(waited), atol=12)


def test_more_sites_than_a_screen_has_rows_are_counted():
    out = io.StringIO()
    with live_view(console=Console(file=out, force_terminal=True, width=100, height=60)) as view:
        fit(demo_tasks(33), Trace(0.1), transport="simulated", callback=view, max_rounds=1)
    assert "and 3 more" in out.getvalue()


def test_the_demonstration_compares_at_one_optimum_and_repeats_itself(runs):
    assert list(runs) == list(BOTH)
    assert all(result.converged for result in runs.values())
    problem = read_sites(demo_tasks(8), LossOptions()).problem
    best = [certify(problem, Trace(0.1), result.W) for result in runs.values()]
    assert max(each.relative for each in best) < 1e-6
    again = run_demo(DemoOptions(transport="simulated"))
    assert all(np.array_equal(again[name].W, runs[name].W) for name in BOTH)
    assert not np.array_equal(demo_tasks(2, seed=1)["site 1"][0], demo_tasks(2)["site 1"][0])


def test_the_demonstration_ends_a_run_that_takes_too_long():
    result = run_demo(DemoOptions(methods=("smtl",), transport="simulated", seconds=0.5, sites=3))["smtl"]
    assert not result.converged
    assert 0.5 <= result.seconds < 0.7


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"sites": 1}, OptionError, "`sites`=1: need 2 to 500"),
        ({"straggler": 0.5}, OptionError, "`straggler`=0.5: need a factor of 1 or more"),
        ({"straggler": float("nan")}, OptionError, "`straggler`=nan"),
        ({"methods": ()}, OptionError, "name at least one method"),
        ({"methods": ("smtl", "smtl")}, OptionError, "`methods`='smtl,smtl'"),
        ({"methods": ("smlt",)}, UnknownNameError, "did you mean `smtl`"),
        ({"transport": "thread"}, UnknownNameError, "did you mean `threads`"),
        ({"seconds": 0.0}, OptionError, "`seconds`=0.0: need a positive number"),
        ({"delay": -1.0}, OptionError, "`delay`=-1.0"),
        ({"gap": 0.0}, OptionError, "`gap`=0.0"),
        ({"seed": -1}, OptionError, "`seed`=-1: need a whole number of 0 or more"),
    ],
)
def test_options_of_the_demonstration_are_checked(settings, error, message):
    with pytest.raises(error, match=re.escape(message)):
        DemoOptions(**settings)


def test_the_demonstration_knows_every_method():
    short = {"transport": "simulated", "sites": 2, "seconds": 0.2}
    assert list(run_demo(DemoOptions(methods=tuple(METHODS), **short))) == list(METHODS)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_shows_the_report_without_a_complaint(runs, tmp_path):
    path = write_report(runs, tmp_path / "report.html")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
        "--window-size=1000,2400", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    assert done.stdout.count('role="img"') == 3
