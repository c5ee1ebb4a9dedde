"""The two ends of a job on any engine: what travels, what is refused, who is given up, and what goes on after a crash."""

import json
import logging
import shutil
import threading

import numpy as np
import pytest
from engine_jobs import SITES, make_pairs, relative_gap, write_job

from taskloom.engines import GOODBYE, LATER, REJECT, Desk, load_rows, make_job_site, take_part
from taskloom.sites import Answer, Update, decode, encode
from taskloom.tasks import DataError, OptionError


def parts_of(job, ask):
    """A thread for each site; `ask(site)` is what it calls."""
    sites = {name: make_job_site(job.tables[name], job) for name in job.sites}
    return [threading.Thread(target=take_part, args=(site, ask(name)), daemon=True) for name, site in sites.items()]


def run_out(job, ask):
    """All sites, from start to end."""
    threads = parts_of(job, ask)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def joined(desk, job):
    """Sites that have joined, each with what it was answered."""
    sites = {name: make_job_site(job.tables[name], job) for name in job.sites}
    for site in sites.values():
        site.take(decode(desk.ask(encode(site.join()))))
    return sites


@pytest.mark.parametrize("method", ["local-prox", "smtl-fista"])
def test_sites_that_call_a_desk_reach_the_optimum(method, tmp_path):
    job = write_job(tmp_path, make_pairs(), method=method)
    desk = Desk(job)
    run_out(job, lambda name: desk.ask)
    result = desk.collect("here")
    assert desk.is_done
    assert (result.status, result.converged, result.modelled) == ("converged", True, job.tasks)
    assert relative_gap(job, result.run.W) < 1e-6
    assert all(site.state == "done" for site in result.sites.values())


def test_nothing_but_the_agreed_numbers_leaves_a_site(tmp_path):
    job = write_job(tmp_path, make_pairs())
    desk, sent = Desk(job), []

    def ask(raw):
        sent.append(raw)
        return desk.ask(raw)

    run_out(job, lambda name: ask)
    values = [rows for site in SITES for rows in load_rows(job.tables[site], job)]
    numbers = {each.tobytes() for rows in values for part in (rows.X.ravel(), rows.y) for each in part}
    for raw in sent:
        line, _, body = raw.partition(b"\n")
        head = json.loads(line)
        assert set(head) == {"kind", "site", "sequence", "epoch", "version", "shapes"}
        assert head["site"] in SITES
        assert set(head["shapes"]) in ({"columns"}, {"curvature"}, {"intercepts"})
        shapes = {"columns": [5, 2], "curvature": [2], "intercepts": [2]}
        assert all(shape == shapes[name] for name, shape in head["shapes"].items())
        assert len(body) == 8 * sum(int(np.prod(shape)) for shape in head["shapes"].values())
        assert not numbers & {body[at : at + 8] for at in range(0, len(body), 8)}
    kinds = [next(iter(json.loads(raw.partition(b"\n")[0])["shapes"])) for raw in sent]
    assert (kinds.count("curvature"), kinds.count("intercepts")) == (3, 3)


def test_bytes_are_counted_as_they_travel(tmp_path):
    job = write_job(tmp_path, make_pairs())
    desk, there, back = Desk(job), dict.fromkeys(SITES, 0), dict.fromkeys(SITES, 0)

    def asker(name):
        def ask(raw):
            reply = desk.ask(raw)
            there[name], back[name] = there[name] + len(raw), back[name] + len(reply)
            return reply

        return ask

    run_out(job, asker)
    result = desk.collect("here")
    assert {name: (site.bytes_in, site.bytes_out) for name, site in result.sites.items()} == {
        name: (there[name], back[name]) for name in SITES
    }


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (np.zeros((4, 2)), "`columns` has shape (4, 2); need (5, 2)"),
        (np.full((5, 2), np.nan), "`columns` holds a number that is not finite"),
        (np.full((5, 2), -np.inf), "`columns` holds a number that is not finite"),
        (np.full((5, 2), 1e13), "`columns` have the norm 3.2e+13, above 1e+12"),
        (np.full((5, 2), 1e200), "`columns` have the norm inf, above 1e+12"),
        (None, "there are no `columns` in it"),
    ],
)
def test_columns_that_cannot_be_are_refused_and_logged_with_the_site(columns, message, tmp_path, caplog):
    job = write_job(tmp_path, make_pairs())
    desk = Desk(job)
    joined(desk, job)
    with caplog.at_level(logging.WARNING):
        answer = decode(desk.ask(encode(Update("south", 1, columns=columns))))
    assert isinstance(answer, Answer)
    assert message in answer.refusal
    assert any("site south" in record.message and message in record.message for record in caplog.records)
    assert desk.session.coordinator.version == 0
    assert desk.collect("here").sites["south"].refused == 1


def test_a_site_that_is_refused_again_and_again_is_lost(tmp_path):
    job = write_job(tmp_path, make_pairs())
    desk = Desk(job)
    joined(desk, job)
    replies = [desk.ask(encode(Update("south", number, columns=np.zeros((1, 1))))) for number in range(1, 11)]
    assert all(isinstance(decode(reply), Answer) for reply in replies[:-1])
    assert replies[-1].startswith(REJECT)
    assert b"refused 10 times" in replies[-1]
    assert desk.progress().states["south"].startswith("lost: refused 10 times")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"nonsense", b"no message of taskloom"),
        (encode(Update("east", 0)), b"it is called 'east', this job has north, south, west"),
    ],
)
def test_strangers_are_turned_away(raw, message, tmp_path):
    desk = Desk(write_job(tmp_path, make_pairs()))
    reply = desk.ask(raw)
    assert reply.startswith(REJECT)
    assert message in reply
    site = make_job_site(desk.job.tables["north"], desk.job)
    with pytest.raises(DataError, match="does not want this site"):
        take_part(site, lambda said: desk.ask(raw))


def test_an_answer_that_must_wait_for_others_is_asked_for_again(tmp_path):
    job = write_job(tmp_path, make_pairs(), method="smtl")
    desk = Desk(job)
    assert desk.ask(encode(Update("north", 0, curvature=np.ones(2))), timeout=0.01) == LATER
    assert desk.ask(encode(Update("south", 0, curvature=np.ones(2))), timeout=0.01) == LATER
    assert isinstance(decode(desk.ask(encode(Update("west", 0, curvature=np.ones(2))))), Answer)
    assert isinstance(decode(desk.ask(encode(Update("north", 0, curvature=np.ones(2))))), Answer)


class Clock:
    """Seconds that pass when told to."""

    now = 0.0

    def __call__(self):
        return self.now


def test_a_silent_site_is_shown_then_given_up_and_others_go_on(tmp_path):
    job = write_job(tmp_path, make_pairs(), patience=5, give_up=50)
    clock = Clock()
    desk = Desk(job, clock=clock)
    sites = joined(desk, job)
    clock.now = 10.0
    for _ in range(60):
        for name in ("north", "south"):
            sites[name].take(decode(desk.ask(encode(sites[name].pending))))
    assert desk.progress().states == {"north": "there", "south": "there", "west": "silent"}
    assert "west silent" in str(desk.progress())
    assert not desk.session.is_over
    clock.now = 55.0
    desk.look()
    assert desk.progress().states["west"] == "lost: silent for 55 s"
    # The others settle, and the job ends without it.
    clock.now = 56.0
    run_out_of(desk, sites, ("north", "south"))
    result = desk.collect("here")
    assert result.status == "sites lost"
    assert "site west was lost" in result.message
    assert result.modelled == ["task 0", "task 1", "task 2", "task 3"]
    with pytest.raises(DataError, match="has no intercept here"):
        result.predict(np.zeros((1, 5)), "task 5")


def test_sites_that_wait_for_one_that_hangs_are_not_silent_themselves(tmp_path):
    job = write_job(tmp_path, make_pairs(), method="smtl", patience=5, give_up=50)
    clock = Clock()
    desk = Desk(job, clock=clock)
    sites = {name: make_job_site(job.tables[name], job) for name in job.sites}
    # All are answered at once when the last of them has joined.
    for name in ("north", "south", "west", "north", "south"):
        reply = desk.ask(encode(sites[name].pending), timeout=0)
        if reply != LATER:
            sites[name].take(decode(reply))
    for name in ("north", "south"):
        assert desk.ask(encode(sites[name].pending), timeout=0) == LATER
    clock.now = 55.0
    desk.look()
    states = desk.progress().states
    assert states == {"north": "there", "south": "there", "west": "lost: silent for 55 s"}
    assert "all others wait for it" in desk.session.message


def run_out_of(desk, sites, names):
    """Some sites in turn, until they may go."""
    left = list(names)
    while left:
        for name in list(left):
            reply = desk.ask(encode(sites[name].pending))
            if reply == GOODBYE:
                left.remove(name)
            else:
                sites[name].take(decode(reply))


def test_a_site_that_was_given_up_for_its_silence_is_taken_back_with_its_next_word(tmp_path):
    job = write_job(tmp_path, make_pairs(), patience=5, give_up=50)
    clock = Clock()
    desk = Desk(job, clock=clock)
    sites = joined(desk, job)
    clock.now = 60.0
    desk.ask(encode(sites["north"].pending))
    assert desk.progress().states["west"].startswith("lost")
    sites["west"].take(decode(desk.ask(encode(sites["west"].pending))))
    assert desk.progress().states["west"] == "there"
    run_out_of(desk, sites, SITES)
    result = desk.collect("here")
    assert result.converged
    assert relative_gap(job, result.run.W) < 1e-6


def test_too_few_sites_end_a_job_with_its_reasons_and_what_it_has_found(tmp_path, caplog):
    job = write_job(tmp_path, make_pairs(), min_sites=2)
    desk = Desk(job)
    sites = joined(desk, job)
    for _ in range(12):
        for site in sites.values():
            site.take(decode(desk.ask(encode(site.pending))))
    desk.fail("west", "its disk is full")
    assert not desk.session.is_over
    desk.fail("south", "it was switched off")
    assert "site south is lost: it was switched off" in caplog.text
    run_out_of(desk, sites, ("north",))
    result = desk.collect("here")
    assert result.status == "too few sites"
    assert "1 of 3 sites are left, need 2" in result.message
    assert "west: its disk is full; south: it was switched off" in result.message
    assert relative_gap(job, result.run.W) < 1e-3
    assert (result.save() / "model" / "model.json").exists()


def test_a_job_of_which_all_sites_fail_ends_without_a_model(tmp_path):
    desk = Desk(write_job(tmp_path, make_pairs()))
    for name in SITES:
        desk.fail(name, "no table")
    assert desk.is_done
    result = desk.collect("here")
    assert (result.status, result.modelled) == ("too few sites", [])
    assert not (result.save() / "model").exists()


def test_a_synchronous_job_whose_site_fails_says_that_all_wait_for_it(tmp_path):
    job = write_job(tmp_path, make_pairs(), method="smtl")
    desk = Desk(job)
    for name in ("north", "south"):
        assert desk.ask(encode(Update(name, 0, curvature=np.ones(2))), timeout=0.01) == LATER
    desk.fail("west", "it burned")
    assert desk.session.status == "failed"
    assert "all others wait for it" in desk.session.message


def test_a_site_whose_loss_has_no_curvature_that_the_method_needs_is_refused(tmp_path):
    desk = Desk(write_job(tmp_path, make_pairs(), method="amtl"))
    reply = desk.ask(encode(Update("north", 0, curvature=np.array([1.0, np.inf]))))
    assert reply.startswith(REJECT)
    assert b"gradient steps need a bounded curvature" in reply
    assert desk.progress().states["north"].startswith("lost")
    assert not desk.session.is_over


def test_a_coordinator_that_comes_up_again_goes_on_from_its_save(tmp_path):
    job = write_job(tmp_path, make_pairs(), checkpoint_every=5)
    desks, calls = [Desk(job)], []

    def ask(raw):
        calls.append(raw)
        if len(calls) == 40:
            # Killed without a word: what it had not saved is lost, and so is the answer.
            desks[0].close()
            desks.append(Desk(job))
            return None
        return desks[-1].ask(raw)

    run_out(job, lambda name: ask)
    before, after = (desk.session.coordinator for desk in desks)
    assert after.version > before.version > 20
    result = desks[-1].collect("here")
    assert result.converged
    assert relative_gap(job, result.run.W) < 1e-6
    assert result.sites["north"].bytes_in > 0


def test_a_site_that_dies_and_comes_up_again_goes_on_where_it_stood(tmp_path):
    job = write_job(tmp_path, make_pairs())
    desk = Desk(job)
    sites = joined(desk, job)
    for _ in range(5):
        for site in sites.values():
            site.take(decode(desk.ask(encode(site.pending))))
    stood = sites["south"].sequence
    sites["south"] = make_job_site(job.tables["south"], job)
    answer = decode(desk.ask(encode(sites["south"].join())))
    assert answer.sequence == stood - 1
    np.testing.assert_array_equal(answer.restart, desk.session.coordinator.V[:, [2, 3]])
    sites["south"].take(answer)
    run_out_of(desk, sites, SITES)
    result = desk.collect("here")
    assert result.converged
    assert relative_gap(job, result.run.W) < 1e-6


def test_a_job_that_is_stopped_tells_everybody(tmp_path):
    job = write_job(tmp_path, make_pairs(), tol=0)
    desk = Desk(job)
    threads = parts_of(job, lambda name: desk.ask)
    for thread in threads:
        thread.start()
    while desk.progress().updates < 20:
        desk.look()
    desk.stop("somebody said so")
    for thread in threads:
        thread.join(30)
    result = desk.collect("here")
    assert (result.status, len(result.modelled)) == ("stopped", 6)
    assert "somebody said so" in result.message


def test_a_second_desk_of_a_job_is_refused_until_the_first_is_closed(tmp_path):
    job = write_job(tmp_path, make_pairs())
    desk = Desk(job)
    with pytest.raises(OptionError, match="its run is being carried out; wait for its end"):
        Desk(job)
    desk.close()
    again = Desk(job)
    again.collect("here")
    Desk(job).close()


def test_a_site_that_wakes_after_the_end_still_says_its_last_word(tmp_path):
    job = write_job(tmp_path, make_pairs(), give_up=50)
    clock = Clock()
    desk = Desk(job, clock=clock)
    sites = joined(desk, job)
    clock.now = 55.0
    run_out_of(desk, sites, ("north", "south"))
    assert (desk.is_done, desk.session.status) == (True, "sites lost")
    run_out_of(desk, sites, ("west",))
    result = desk.collect("here")
    assert (result.status, result.sites["west"].state, result.modelled) == ("sites lost", "done", job.tasks)


def test_a_site_that_has_ended_is_heard_again_only_when_it_joins(tmp_path):
    job = write_job(tmp_path, make_pairs())
    desk = Desk(job)
    sites = joined(desk, job)
    desk.fail("west", "its disk is full")
    desk.fail("south", "it has no table", lasting=True)
    assert desk.ask(encode(sites["west"].pending)) == REJECT + b"its disk is full"
    sites["west"].take(decode(desk.ask(encode(sites["west"].join()))))
    assert desk.progress().states["west"] == "there"
    reports = desk.collect("here").sites
    assert {name: (site.is_lost, site.is_lasting) for name, site in reports.items()} == {
        "north": (False, False),
        "south": (True, True),
        "west": (False, False),
    }


def test_a_checkpoint_that_cannot_be_written_any_more_ends_the_run_with_its_model(tmp_path):
    job = write_job(tmp_path, make_pairs(), tol=0, checkpoint_every=20, checkpoint=str(tmp_path / "saved"))
    desk = Desk(job)
    sites = joined(desk, job)
    shutil.rmtree(job.checkpoint)
    job.checkpoint.write_text("no folder", encoding="utf-8")
    run_out_of(desk, sites, SITES)
    result = desk.collect("here")
    assert (result.status, result.modelled) == ("failed", job.tasks)
    assert "it cannot be saved any more" in result.message
    assert (result.save() / "model" / "model.json").exists()


def test_a_run_that_has_settled_does_not_fail_for_its_last_save(tmp_path, caplog):
    job = write_job(tmp_path, make_pairs(), checkpoint=str(tmp_path / "saved"))
    desk = Desk(job)
    run_out_of(desk, joined(desk, job), SITES)
    shutil.rmtree(job.checkpoint)
    job.checkpoint.write_text("no folder", encoding="utf-8")
    assert desk.collect("here").converged
    assert "the run cannot be saved" in caplog.text


def test_the_end_of_a_site_that_has_parted_and_of_a_stranger_do_not_count(tmp_path):
    job = write_job(tmp_path, make_pairs())
    desk = Desk(job)
    run_out_of(desk, joined(desk, job), SITES)
    for name in ("north", "nobody"):
        desk.fail(name, "its process is gone")
    result = desk.collect("here")
    assert result.converged
    assert {name: site.state for name, site in result.sites.items()} == dict.fromkeys(SITES, "done")


@pytest.mark.parametrize(
    "raw",
    [
        encode(Update("n" * 5000, 0)),
        encode(Update("north\nsite south is lost", 0)),
        b'{"kind": "Update", "shapes": {"a\\nsite south is lost": [1]}}\n',
        b'{"kind": "Update", "site": "\\ud800", "sequence": 0, "epoch": 0, "version": 0, "shapes": {}}\n',
        b'{"kind": "\\ud800", "shapes": {}}\n',
        b"x" * 20_000,
    ],
)
def test_what_strangers_write_is_short_and_in_one_line_in_the_log_and_in_the_reply(raw, tmp_path, caplog):
    desk = Desk(write_job(tmp_path, make_pairs()))
    reply = desk.ask(raw)
    assert reply.startswith(REJECT)
    said = [reply.decode(), *caplog.messages]
    assert len(said) == 2
    assert all(len(each) < 500 and "\n" not in each for each in said)
