"""The coordinator as a state: what changes it and what does not, when it is over, and that it comes back to the bit."""

import logging
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.contracts import ResumeContract
from tests.sites.sites_problems import D, Hand, K, simulate

from taskloom.linear import L1, L21, Graph, MeanRegularized, Ridge, Trace, column_prox
from taskloom.sites import METHODS, Answer, StepOptions, StopRule, Update, encode
from taskloom.sites._relaxation import SHORTEST, Safeguard, dynamic_factor, theory_bound
from taskloom.tasks import DataError

ASYNCHRONOUS = [name for name, method in METHODS.items() if not method.is_synchronous]
SYNCHRONOUS = [name for name, method in METHODS.items() if method.is_synchronous]
PENALTIES = [
    Trace(0.1),
    L21(0.05),
    L1(0.05),
    Ridge(0.1),
    MeanRegularized(0.1),
    Graph(0.1, np.ones((K, K))),
    Trace(0.1) + Ridge(0.1),
]


def plain(state, *without):
    """A state dict as something to compare, NaN equal to NaN."""
    if isinstance(state, dict):
        return {key: plain(value, *without) for key, value in state.items() if key not in without}
    if isinstance(state, np.ndarray):
        return state.tobytes()
    return repr(state)


def model(coordinator):
    """V, or what a synchronous coordinator goes on from."""
    return [value.copy() for name, value in sorted(coordinator.state_dict()["arrays"].items()) if name in "VWY"]


# Messages that were seen before, or come late


@pytest.mark.parametrize("method", METHODS)
def test_messages_that_come_again_in_any_order_change_nothing(method):
    hand = Hand(method, Trace(0.1))
    hand.rounds(7)
    hand.send("s1")
    coordinator, rng = hand.coordinator, np.random.default_rng(0)
    before = plain(coordinator.state_dict(), "duplicates")
    for i in rng.permutation(2 * len(hand.sent)):
        coordinator.receive(hand.sent[i % len(hand.sent)], 1000.0)
    assert plain(coordinator.state_dict(), "duplicates") == before
    assert sum(site.duplicates for site in coordinator.sites.values()) == 2 * (len(hand.sent) - K)
    # Whoever sent them is answered, and the answers change the model no more than the messages did.
    kept = model(coordinator)
    coordinator.answers(1000.0)
    for one, two in zip(model(coordinator), kept, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("method", METHODS)
def test_of_two_messages_of_a_site_that_overtake_each_other_the_later_one_counts(method):
    hand = Hand(method, L1(0.05))
    hand.rounds(4)
    coordinator, site = hand.coordinator, hand.coordinator.sites["s2"]
    old = hand.sites["s2"].pending
    new = Update("s2", old.sequence + 1, coordinator.epoch, columns=np.full((D, 1), 3.0), version=old.version)
    updates = site.updates
    coordinator.receive(new, 100.0)
    coordinator.receive(old, 101.0)
    assert (site.sequence, site.updates) == (new.sequence, updates + 1)
    np.testing.assert_array_equal(coordinator.V[:, [2]], new.columns)


@pytest.mark.parametrize("method", METHODS)
def test_old_answers_are_not_taken(method):
    hand = Hand(method, Trace(0.1))
    hand.rounds(5)
    for site in hand.sites.values():
        pending = site.pending
        for answer in hand.answered:
            if answer.site == site.name and answer.sequence < pending.sequence:
                assert site.take(answer) is None
        assert site.pending is pending


def test_an_answer_that_was_lost_is_given_again():
    hand, twin = Hand("local-prox", Trace(0.1)), Hand("local-prox", Trace(0.1))
    for each in (hand, twin):
        each.rounds(3)
    hand.send("s1")
    assert [answer.site for answer in hand.coordinator.answers(0.0)] == ["s1"]  # lost
    hand.trip("s1")
    twin.trip("s1")
    np.testing.assert_array_equal(hand.coordinator.V, twin.coordinator.V)
    np.testing.assert_array_equal(hand.sites["s1"].columns, twin.sites["s1"].columns)


def test_a_message_that_came_twice_leaves_no_wrong_traces():
    # The site goes on from the first answer; the second one, given later, says something else.
    hand = Hand("local-prox", Trace(0.1))
    hand.rounds(4)
    coordinator, site = hand.coordinator, hand.coordinator.sites["s0"]
    hand.trip("s0")
    version = coordinator.version
    hand.trip("s1")
    coordinator.receive(hand.sent[-2], hand.now)
    (second,) = coordinator.answers(hand.now)
    assert second.version == version + 1
    assert hand.sites["s0"].take(second) is None
    kept = coordinator.balance.z.copy(), site.residual
    hand.trip("s0")
    assert site.staleness == 1
    # What it worked from is not what it was told last: nothing is concluded from that.
    np.testing.assert_array_equal(coordinator.balance.z, kept[0])
    assert site.residual == kept[1]
    hand.trip("s0")
    assert site.residual != kept[1]


# Messages that cannot be taken


def columns(value, shape=(D, 1)):
    return lambda m: Update(m.site, m.sequence, m.epoch, columns=np.full(shape, value), version=m.version)


BAD = {
    "shape": (columns(1.0, (D, 2)), r"`columns` has shape \(5, 2\); need \(5, 1\)"),
    "flat": (columns(1.0, (D,)), r"`columns` has shape \(5,\)"),
    "nan": (columns(np.nan), "`columns` holds a number that is not finite"),
    "infinite": (columns(-np.inf), "not finite; check the rows of the site"),
    "empty": (lambda m: Update(m.site, m.sequence, m.epoch), "there are no `columns` in it"),
    "intercepts": (lambda m: Update(m.site, m.sequence, intercepts=np.array([np.nan])), "`intercepts` holds a number"),
    "more intercepts": (lambda m: Update(m.site, m.sequence, intercepts=np.ones(2)), r"`intercepts` has shape \(2,\); need"),
    "endless intercepts": (lambda m: Update(m.site, m.sequence, intercepts=np.array([np.inf])), "`intercepts` holds a number"),
    "before the first": (lambda m: replace(m, version=-(10**400)), "`version`=-10+: a model has seen 0 updates or more"),
}  # fmt: skip


@pytest.mark.parametrize("method", ["local-prox", "amtl", "smtl"])
@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_taken_is_refused_logged_and_told_and_the_site_goes_on(case, method, caplog):
    make, words = BAD[case]
    hand = Hand(method, Trace(0.1))
    hand.rounds(3)
    coordinator, site = hand.coordinator, hand.coordinator.sites["s1"]
    kept, version = model(coordinator), coordinator.version
    with caplog.at_level(logging.WARNING):
        coordinator.receive(make(hand.sites["s1"].pending), 50.0)
    assert caplog.records[0].message.startswith("refused a message of site s1: ")
    assert re.search(words, caplog.records[0].message)
    assert caplog.records[0].name.startswith("taskloom")
    for one, two in zip(model(coordinator), kept, strict=True):
        np.testing.assert_array_equal(one, two)
    assert (coordinator.version, site.refused, site.intercepts) == (version, 1, None)
    if method == "smtl":
        return  # told when the round is over
    (answer,) = coordinator.answers(51.0)
    assert re.search(words, answer.refusal)
    np.testing.assert_array_equal(answer.restart, coordinator.V[:, site.tasks])
    following = hand.sites["s1"].take(answer)
    assert following.sequence > site.sequence
    coordinator.receive(following, 52.0)
    assert coordinator.version == version + 1


def test_a_version_that_is_not_there_yet_says_nothing_of_how_far_the_run_is():
    """A site may have it of a coordinator that died; what it is the version of is gone."""
    hand, other = (Hand("amtl-paper", Trace(0.1), rule=StopRule(1e300)) for _ in range(2))
    for each in (hand, other):
        each.rounds(3)
        each.coordinator.is_over = each.coordinator.converged = False
    coordinator, site = hand.coordinator, hand.coordinator.sites["s1"]
    eta, residual = coordinator._relaxation(site), site.residual
    for _ in range(9):
        for name in hand.sites:
            pending = hand.sites[name].pending
            coordinator.receive(replace(pending, version=10**15), 50.0)
            for answer in coordinator.answers(51.0):
                hand.sites[answer.site].take(answer)
    assert not coordinator.is_over
    assert coordinator.version == other.coordinator.version + 36
    assert (coordinator._relaxation(site), site.residual, site.refused) == (eta, residual, 0)
    other.rounds(2)
    assert other.coordinator.is_over


@pytest.mark.parametrize("method", METHODS)
def test_a_site_that_parts_before_the_end_is_told_where_it_stands_and_goes_on(method):
    """Its coordinator may have died after the end, and come up from an older save."""
    hand, twin = Hand(method, Trace(0.1)), Hand(method, Trace(0.1))
    for each in (hand, twin):
        each.rounds(5)
    coordinator, site = hand.coordinator, hand.sites["s1"]
    kept = model(coordinator)
    coordinator.stop()
    (answer,) = hand.trip("s1")
    assert answer.stop
    assert site.pending.intercepts is not None
    coordinator.is_over = False
    hand.send("s1")
    assert coordinator.sites["s1"].intercepts is None
    for one, two in zip(model(coordinator), kept, strict=True):
        np.testing.assert_array_equal(one, two)
    for name in ("s0", "s2", "s3", "s1"):
        hand.trip(name)
    assert not site.is_over
    assert site.pending.columns is not None
    hand.rounds(400)
    twin.rounds(400)
    np.testing.assert_allclose(coordinator.finish(), twin.coordinator.finish(), atol=1e-3)
    assert not any(record.refused for record in coordinator.sites.values())


def test_a_refused_site_reaches_the_optimum_all_the_same():
    hand = Hand("local-prox", Trace(0.1), rule=StopRule(1e-10))
    for r in range(400):
        for name, site in hand.sites.items():
            if r % 5 == 2 and name == "s0" and site.pending.columns is not None:
                bad = Update(name, site.pending.sequence, site.pending.epoch, columns=np.full((D, 1), np.nan))
                hand.coordinator.receive(bad, hand.now)
                hand.answer()
            hand.trip(name)
        if hand.coordinator.is_over:
            break
    assert hand.coordinator.converged
    assert hand.coordinator.sites["s0"].refused > 1
    best = simulate(dict(zip(("s0", "s1", "s2", "s3"), pairs_of(hand), strict=True)), Trace(0.1), gap=1e-11)
    np.testing.assert_allclose(hand.coordinator.finish(), best.W, atol=1e-5)


def pairs_of(hand):
    return [(hand.data.rows(t).X, hand.data.rows(t).y) for t in range(K)]


@pytest.mark.parametrize("method", METHODS)
def test_a_site_that_is_none_of_the_runs_is_refused(method):
    hand = Hand(method, Trace(0.1))
    before = plain(hand.coordinator.state_dict())
    with pytest.raises(DataError, match="`site`='moon' is none of this run's; known are s0, s1, s2, s3"):
        hand.coordinator.receive(Update("moon", 0), 0.0)
    assert plain(hand.coordinator.state_dict()) == before
    assert hand.coordinator.answers(0.0) == []


# Epochs


@pytest.mark.parametrize(("method", "local"), [("local-prox", "prox"), ("amtl", "gradient")])
def test_what_was_worked_out_at_another_step_is_converted(method, local):
    """Told (z + step g + v) / 2, or p where it takes gradients, the site would have found the same at this step."""
    hand = Hand(method, Trace(0.1))
    hand.rounds(4)
    coordinator, site, far = hand.coordinator, hand.coordinator.sites["s3"], hand.sites["s3"]
    old, terms, step = far.pending, coordinator._terms["s3"], coordinator.step
    eta, before, p = terms.eta, terms.before[:, 0], terms.told[:, 0]
    coordinator._set_step(3 * step)
    v, updates = coordinator.V[:, 3].copy(), site.updates
    coordinator.receive(old, 99.0)
    assert (site.updates, site.sequence) == (updates + 1, old.sequence)
    loss = far.losses[0]
    if local == "gradient":
        found = p - 3 * step * loss.gradient(p)
        wanted = v + eta * (found - v)
    else:
        z = loss(2 * p - before, step)
        told = (z + 3 * step * loss.gradient(z) + v) / 2
        np.testing.assert_allclose(loss(2 * told - v, 3 * step), z, atol=1e-9)
        wanted = v + eta * (z - told)
    np.testing.assert_allclose(coordinator.V[:, 3], wanted, atol=1e-9)
    (answer,) = coordinator.answers(99.0)
    assert answer.epoch == coordinator.epoch > old.epoch
    np.testing.assert_array_equal(answer.restart, coordinator.V[:, [3]])


def test_at_the_optimum_another_step_moves_nothing():
    hand = Hand("local-prox", Trace(0.1))
    hand.rounds(400)
    coordinator, old = hand.coordinator, hand.sites["s3"].pending
    coordinator._set_step(3 * coordinator.step)
    V = coordinator.V.copy()
    coordinator.receive(old, 99.0)
    np.testing.assert_allclose(coordinator.V, V, atol=1e-9)


def test_what_a_site_found_on_terms_that_are_not_its_last_is_not_taken():
    hand = Hand("local-prox", Trace(0.1))
    hand.rounds(4)
    coordinator, site = hand.coordinator, hand.coordinator.sites["s3"]
    old = replace(hand.sites["s3"].pending, epoch=coordinator.epoch - 1)
    V, updates = coordinator.V.copy(), site.updates
    coordinator.receive(old, 99.0)
    np.testing.assert_array_equal(coordinator.V, V)
    assert (site.updates, site.sequence) == (updates, old.sequence)
    (answer,) = coordinator.answers(99.0)
    np.testing.assert_array_equal(answer.restart, V[:, [3]])
    new = hand.sites["s3"].take(answer)
    coordinator.receive(new, 100.0)
    assert site.updates == updates + 1


@pytest.mark.parametrize("method", SYNCHRONOUS)
def test_a_round_takes_each_site_once_and_no_gradient_of_another_round(method):
    hand = Hand(method, Trace(0.1))
    hand.rounds(2)
    coordinator = hand.coordinator
    old = [message for message in hand.sent if message.columns is not None and message.epoch < coordinator.epoch]
    assert old
    late = Update(old[0].site, 10_000, old[0].epoch, columns=np.full((D, 1), 9.0))
    V, arrived = coordinator.V.copy(), set(coordinator.arrived)
    coordinator.receive(late, 0.0)
    np.testing.assert_array_equal(coordinator.V, V)
    assert coordinator.arrived == arrived


@pytest.mark.parametrize("method", SYNCHRONOUS)
def test_nobody_goes_on_before_all_have_joined_and_reported(method):
    hand = Hand(method, Trace(0.1))
    for name in ("s0", "s1", "s2"):
        assert hand.trip(name) == []
    assert [answer.site for answer in hand.trip("s3")] == ["s0", "s1", "s2", "s3"]
    for name in ("s2", "s0", "s3"):
        assert hand.trip(name) == []
    assert {answer.site for answer in hand.trip("s1")} == {"s0", "s1", "s2", "s3"}


def test_a_late_and_steeper_site_shortens_the_gradient_step():
    hand = Hand("amtl", Trace(0.1))
    for name in ("s1", "s2"):
        hand.trip(name)
    step = hand.coordinator.step
    hand.coordinator.receive(Update("s0", 0, curvature=np.array([100.0])), 1.0)
    assert hand.coordinator.step == 1.9 / 100 < step


# Coalescing


@pytest.mark.parametrize("method", ["local-prox", "amtl"])
@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: repr(p).split("array")[0][:40])
def test_messages_that_share_a_map_are_answered_as_if_each_had_come_alone(penalty, method):
    sites = {"a": [2, 0], "b": [1], "c": [3]}
    together, alone = Hand(method, penalty, sites=sites), Hand(method, penalty, sites=sites)
    for hand in (together, alone):
        hand.rounds(5)
    for name in sites:
        together.send(name)
        alone.send(name)
        if name != "c":
            alone.coordinator.answers(0.0)  # lost on the way
    for name in ("a", "b"):
        alone.send(name)
    answers = {answer.site: answer for answer in together.coordinator.answers(0.0)}
    single = {answer.site: answer for answer in alone.coordinator.answers(0.0)}
    assert answers.keys() == single.keys() == sites.keys()
    V = together.coordinator.V
    np.testing.assert_allclose(V, alone.coordinator.V, atol=1e-14)
    for name, answer in answers.items():
        np.testing.assert_allclose(answer.columns, single[name].columns, atol=1e-14)
        np.testing.assert_allclose(answer.columns, together.coordinator.finish()[:, sites[name]], atol=1e-14)
        if len(penalty.split()[0]) + (penalty.split()[1] is not None) == 1:
            np.testing.assert_allclose(answer.columns, penalty.prox(V, answer.step)[:, sites[name]], atol=1e-12)
    # All know of all three messages.
    assert {answer.version for answer in answers.values()} == {together.coordinator.version}


# When it is over


def test_it_is_over_when_all_have_reported_a_small_residual_since_it_was_large():
    hand = Hand("local-prox", Trace(0.1), rule=StopRule(1e-6))
    hand.rounds(60)
    coordinator = hand.coordinator
    assert coordinator.is_over
    assert coordinator.converged
    assert coordinator.residual < 1e-6
    assert coordinator.verdict().startswith("converged: the residual is")
    assert coordinator.verdict().endswith("of V's norm (tol 1e-06)")
    assert all(answer.stop for answer in hand.answered[-K:])
    last = hand.answered[-1]
    np.testing.assert_allclose(last.columns, coordinator.finish()[:, coordinator.sites[last.site].tasks], rtol=1e-12)
    assert all(site.is_over for site in hand.sites.values())
    for name in hand.sites:
        coordinator.receive(hand.sites[name].pending, 0.0)
    assert all(site.intercepts is not None for site in coordinator.sites.values())


def test_a_silent_site_keeps_the_run_from_being_called_converged():
    hand = Hand("local-prox", Trace(0.1), rule=StopRule(1e-3))
    hand.rounds(2)
    for _ in range(200):
        for name in ("s0", "s1", "s2"):
            hand.trip(name)
    assert not hand.coordinator.is_over
    assert "nothing came any more from site s3" in hand.coordinator.verdict()


def test_verdicts_name_who_is_waited_for():
    hand = Hand("local-prox", Trace(0.1), rule=StopRule(1e-6, max_updates=40))
    assert hand.coordinator.verdict() == "not converged after 0 updates: never heard of site s0, s1, s2, s3"
    for _ in range(5):
        for name in ("s0", "s2"):
            hand.trip(name)
    assert hand.coordinator.verdict().endswith("never heard of site s1, s3")
    hand.rounds(12)
    assert hand.coordinator.is_over
    assert hand.coordinator.version == 40
    assert "not converged after 40 updates: the residual is" in hand.coordinator.verdict()
    assert "nothing came" not in hand.coordinator.verdict()


def test_a_slow_site_is_not_called_gone():
    hand = Hand("local-prox", Trace(0.1))
    hand.rounds(2)
    for r in range(100):
        for name in ("s0", "s1", "s2"):
            hand.trip(name)
        if r % 20 == 19:
            hand.trip("s3")
    for _ in range(15):
        hand.trip("s0")
    assert "nothing came" not in hand.coordinator.verdict()


@pytest.mark.parametrize("method", METHODS)
def test_limits_count_updates_of_all_and_rounds_of_each(method):
    hand = Hand(method, Trace(0.1), rule=StopRule(0.0, max_updates=np.int64(12)))
    hand.rounds(6)
    assert hand.coordinator.version == 12
    assert hand.coordinator.is_over is True
    for answer in hand.answered:
        encode(answer)  # plain numbers, whatever the limit was
    hand = Hand(method, Trace(0.1), rule=StopRule(0.0, max_rounds=3))
    hand.rounds(8)
    assert {site.updates for site in hand.coordinator.sites.values()} == {3}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_can_be_stopped_before_anybody_came(method):
    hand = Hand(method, Trace(0.1))
    hand.coordinator.stop()
    (answer,) = hand.trip("s0")
    assert isinstance(answer, Answer)
    assert answer.stop
    assert not hand.coordinator.finish().any()


# Relaxation


@pytest.mark.parametrize("sites", [None, {"a": [0, 1], "b": [2, 3]}])
def test_the_relaxation_of_the_paper_is_within_its_bound_at_all_times(sites):
    hand = Hand("amtl-paper", Trace(0.1), sites=sites)
    rng, names = np.random.default_rng(0), list(hand.sites)
    for _ in range(300):
        name = names[int(len(names) * rng.random() ** 3)]  # the first far more often than the last
        for answer in hand.trip(name):
            worst = max(site.most_stale for site in hand.coordinator.sites.values())
            # The columns of a site are one block of the theorem.
            assert answer.relaxation <= theory_bound(len(names), worst) + 1e-15
            assert 0 < answer.relaxation < 0.9 + 1e-15
    assert hand.coordinator.most_stale > len(names)


def test_the_dynamic_relaxation_is_the_bound_times_the_factor_within_the_limit():
    hand = Hand("amtl-paper", Trace(0.1), steps=StepOptions(is_dynamic=True, unit=0.01))
    for _ in range(6):
        hand.rounds(1)
        for answer in hand.answered[-K:]:
            site = hand.coordinator.sites[answer.site]
            assert 0 < answer.relaxation <= 1.0
            assert len(site.delays) <= 5
    last = hand.answered[-1]
    site = hand.coordinator.sites[last.site]
    wanted = theory_bound(K, hand.coordinator.most_stale) * np.log(max(np.mean(site.delays) / 0.01, 10))
    assert last.relaxation == pytest.approx(min(1.0, wanted), rel=1e-12)


@pytest.mark.parametrize(
    ("delays", "unit", "factor"),
    [([], 1.0, np.log(10)), ([0.1], 1.0, np.log(10)), ([5.0, 25.0], 1.0, np.log(15)), ([5.0, 25.0], 0.1, np.log(150)),
     ([5.0, 25.0], 10.0, np.log(10)), ([100.0] * 5, 1.0, np.log(100))],
)  # fmt: skip
def test_the_dynamic_factor_is_the_papers(delays, unit, factor):
    assert dynamic_factor(delays, unit) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("blocks", "tau", "bound"), [(5, 5, 0.164), (15, 15, 0.103), (50, 50, 0.059), (139, 139, 0.037), (7, 0, 0.9)]
)
def test_the_bound_is_the_papers(blocks, tau, bound):
    assert theory_bound(blocks, tau) == pytest.approx(bound, abs=6e-4)


def test_the_safeguard_halves_when_the_residual_rises_and_grows_when_it_falls():
    guard = Safeguard(limit=1.8)
    assert guard.eta == 1.8
    assert [guard.look(residual) for residual in (1.0, 2.0, 4.0)] == [1.8, 0.9, 0.45]
    assert [guard.look(residual) for residual in (3.0, 2.0, 2.0, 2.3)] == pytest.approx([0.675, 1.0125, 1.51875, 1.8])
    for residual in 10.0 ** np.arange(100):
        guard.look(residual)
    assert guard.eta == SHORTEST
    for _ in range(40):
        guard.look(1.0)
    assert guard.eta == 1.8


def test_a_step_that_is_far_too_long_is_tamed_by_the_safeguard():
    # Gradient steps of four times what the curvature allows, relaxed, converge where unrelaxed ones would not.
    hand = Hand("amtl", Trace(0.1))
    hand.rounds(2)
    long = 4 * hand.coordinator.step
    hand = Hand("amtl", Trace(0.1), steps=StepOptions(step=long), rule=StopRule(1e-7, max_updates=4000))
    hand.rounds(1100)
    assert min(answer.relaxation for answer in hand.answered) < 0.5
    assert hand.coordinator.residual < 1.0


# Staleness


def test_staleness_is_how_many_others_came_in_between():
    hand = Hand("local-prox", L1(0.05), steps=StepOptions(step=1.0))
    hand.rounds(1)
    counted = []
    for name in ("s0", "s1", "s1", "s2", "s0", "s0", "s3"):
        hand.trip(name)
        counted.append(hand.coordinator.sites[name].staleness)
    assert counted == [0, 1, 0, 3, 3, 0, 6]
    assert [site.most_stale for site in hand.coordinator.sites.values()] == [3, 1, 3, 6]
    assert hand.coordinator.most_stale == 6


def test_messages_that_come_together_are_stale_by_those_before_them():
    hand = Hand("local-prox", L1(0.05), steps=StepOptions(step=1.0))
    hand.rounds(3)
    for name in hand.sites:
        hand.send(name)
    assert [site.staleness for site in hand.coordinator.sites.values()] == [3, 3, 3, 3]
    hand.answer()
    for name in hand.sites:
        hand.send(name)
    assert [site.staleness for site in hand.coordinator.sites.values()] == [0, 1, 2, 3]


# State


class Thing:
    """A coordinator with its sites, whose state is numbers and tensors; running sums are taken anew as when it is saved."""

    def __init__(self, method, penalty):
        self.hand, self.turn = Hand(method, penalty), 0

    def state_dict(self):
        state = tensors(self.hand.coordinator.state_dict())
        for site in state["sites"].values():
            site.pop("delays")  # in time of a clock that another life does not share
        return state | {"turn": self.turn, "mine": {name: tensors(vars_of(site)) for name, site in self.hand.sites.items()}}

    def load_state_dict(self, state):
        state = arrays(state)
        self.turn = state.pop("turn")
        for name, kept in state.pop("mine").items():
            site = self.hand.sites[name]
            for key, value in kept.items():
                setattr(site, key, value)
            site._last = Update(name, site.sequence, self.hand.coordinator.epoch, columns=site.columns)
        for site in state["sites"].values():
            site["delays"] = []
        self.hand.coordinator.load_state_dict(state)
        for name, site in self.hand.sites.items():
            site._last = Update(name, *kept_message(state, name, site))


def vars_of(site):
    last = site.pending
    return {"columns": site.columns, "sequence": site.sequence, "epoch_sent": last.epoch, "version_sent": last.version}


def kept_message(state, name, site):
    return site.sequence, site.epoch_sent, site.columns, None, None, site.version_sent


def tensors(value):
    if isinstance(value, dict):
        return {key: tensors(each) for key, each in value.items()}
    if isinstance(value, list):
        return [tensors(each) for each in value]
    if isinstance(value, np.ndarray):
        # NaN is no number that equals itself; bits are.
        return torch.from_numpy(np.array(value, dtype=np.float64, order="C").view(np.int64))
    if isinstance(value, float):
        return float(value).hex()
    return value


def arrays(value):
    if isinstance(value, dict):
        return {key: arrays(each) for key, each in value.items()}
    if isinstance(value, list):
        return [arrays(each) for each in value]
    if isinstance(value, torch.Tensor):
        return value.numpy().view(np.float64).copy()
    if isinstance(value, str) and ("0x" in value or value in ("nan", "inf", "-inf")):
        return float.fromhex(value)
    return value


class Resumes(ResumeContract):
    method, penalty = "local-prox", L1(0.05)

    def make(self):
        thing = Thing(self.method, self.penalty)
        thing.hand.rounds(1)
        return thing

    def advance(self, thing, n):
        for _ in range(n):
            thing.turn += 1
            coordinator = thing.hand.coordinator
            if hasattr(coordinator, "prox"):
                coordinator.prox = column_prox(coordinator.penalty, coordinator.step, coordinator.V)
            thing.hand.rounds(1)


class TestLocalProxResumes(Resumes):
    pass


class TestLocalProxWithATraceNormResumes(Resumes):
    penalty = Trace(0.1)


class TestAmtlResumes(Resumes):
    method = "amtl"


class TestAmtlOfThePaperResumes(Resumes):
    method, penalty = "amtl-paper", L21(0.05)


class TestSmtlResumes(Resumes):
    method, penalty = "smtl", Trace(0.1)


class TestSmtlFistaResumes(Resumes):
    method, penalty = "smtl-fista", Trace(0.1)


@pytest.mark.parametrize("method", METHODS)
def test_a_state_of_other_sites_is_refused(method):
    one, two = Hand(method, Trace(0.1)), Hand(method, Trace(0.1), sites={"a": [0, 1], "b": [2, 3]})
    with pytest.raises(DataError, match=r"`state` is of sites and tasks .*give the data that it was begun with"):
        two.coordinator.load_state_dict(one.coordinator.state_dict())


@pytest.mark.parametrize("method", METHODS)
def test_what_a_coordinator_gives_away_is_not_its_own(method):
    hand = Hand(method, Trace(0.1))
    hand.rounds(4)
    kept = [each.copy() for each in model(hand.coordinator)]
    for answer in hand.answered:
        answer.columns[:] = np.nan
        if answer.restart is not None:
            answer.restart[:] = np.nan
    for message in hand.sent:
        if message.columns is not None:
            message.columns[:] = np.nan
    for one, two in zip(model(hand.coordinator), kept, strict=True):
        np.testing.assert_array_equal(one, two)


UNBOUNDED = "but gradient steps need a bounded curvature; check the units of the site's rows, or use `local-prox`"


@pytest.mark.parametrize(
    ("method", "curvature", "words"),
    [
        ("amtl", np.ones(3), r"`curvature` has shape \(3,\); need \(1,\)"),
        ("amtl", np.array([np.nan]), "`curvature` holds a number that is not finite"),
        ("local-prox", np.array([-1.0]), "`curvature` is -1.0e.00; that of a convex loss is 0 or more"),
        ("smtl", np.array([-np.inf]), "`curvature` is -inf; that of a convex loss"),
        ("amtl", np.array([np.inf]), "`curvature` is inf, " + UNBOUNDED),
        ("amtl-paper", np.array([1e300]), r"`curvature` is 1.0e\+300, " + UNBOUNDED),
        ("smtl", np.array([np.inf]), UNBOUNDED),
        ("smtl-fista", np.array([1e300]), UNBOUNDED),
    ],
)
def test_a_site_that_joins_with_what_cannot_be_is_refused(method, curvature, words):
    hand = Hand(method, Trace(0.1))
    before = plain(hand.coordinator.state_dict()["arrays"])
    assert re.search(words, hand.coordinator.receive(Update("s0", 0, curvature=curvature), 0.0))
    assert plain(hand.coordinator.state_dict()["arrays"]) == before
    assert hand.coordinator.sites["s0"].refused == 1
    # It is told when it comes to that; of a run, it would have failed.
    for answer in hand.coordinator.answers(0.0):
        assert re.search(words, answer.refusal)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("curvature", [0.0, 5e-324, 1e-90, 1e90, 1e300, np.inf])
def test_any_curvature_that_real_rows_can_have_leads_to_a_step(method, curvature):
    """None, of features that do not vary; next to none, of what rounding leaves of those; or any, of units that are far off."""
    steps = StepOptions(step=0.1) if METHODS[method].local == "gradient" and curvature > 1e100 else StepOptions()
    hand = Hand(method, Trace(0.1), steps=steps)
    for name in hand.sites:
        assert hand.coordinator.receive(Update(name, 0, curvature=np.array([curvature])), 0.0) == ""
    # A threshold over the singular values of zero may overflow, and is above them then as well.
    with np.errstate(over="ignore"):
        answers = hand.coordinator.answers(0.0)
    assert len(answers) == K
    for answer in answers:
        assert 0 < answer.step < np.inf
        assert np.isfinite(answer.columns).all()


def test_one_site_without_a_bound_leaves_the_first_step_to_the_others():
    steps = []
    for odd in (np.inf, 1e300, 0.0, 5e-324):
        hand = Hand("local-prox", Trace(0.1))
        for name, curvature in (("s0", 1.0), ("s1", 3.0), ("s2", odd)):
            hand.coordinator.receive(Update(name, 0, curvature=np.array([curvature])), 0.0)
        steps.append(hand.coordinator.step)
    assert steps == [2.0] * 4
