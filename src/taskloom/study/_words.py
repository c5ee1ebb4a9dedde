"""The outcome of a study in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from taskloom.study._compare import Summary, Verdict
from taskloom.study._controls import Contrast
from taskloom.study._verdict import LEAST_SEEDS

GOOD_SEEDS = 10


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _count(number: int, total: int) -> str:
    return "none" if number == 0 else f"all {total}" if number == total else str(number)


def recipe_sentence(summary: Summary, verdicts: Sequence[Verdict], error: str = "") -> str:
    """What a recipe did to the tasks, in one sentence or two.

    Args:
        summary: of the recipe.
        verdicts: of the recipe.
        error: why it failed, where it did.

    Examples:
        >>> one = Verdict("joint", "a", 0.9, "single", 0.8, 0.1, 0.05, 0.15, 0.01, 0.01, "helped")
        >>> recipe_sentence(Summary("joint", "single", 1, 0, 0, 0.1, 0.05, 0.15, (), 1.0, 10, 30, 5.0), [one])
        '`joint` against `single`: helped all 1, hurt none. Mean score better on 1 of 1. Mean gain +0.1000 [+0.0500, +0.1500].'
    """
    if summary.failed and not verdicts:
        on = f" on seed {', '.join(map(str, summary.failed))}"
        return f"`{summary.recipe}` gave no model{on} ({error}); seeds that lack a model decide nothing."
    if not verdicts:
        return f"`{summary.recipe}` has nothing to be compared with: no seed has both its model and a baseline's."
    total = len(verdicts)
    text = f"`{summary.recipe}` against `{summary.baseline}`: helped {_count(summary.helped, total)}, hurt "
    hurt = [verdict.task for verdict in verdicts if verdict.word == "hurt"]
    text += _count(summary.hurt, total) + (f" ({_some(hurt)})" if hurt else "")
    text += f", {summary.undecided} of {total} undecided." if summary.undecided else "."
    doubtful = [verdict.task for verdict in verdicts if verdict.word == "undecided" and (verdict.high or 0.0) < 0]
    if doubtful:
        text += f" In doubt, its own interval below 0 before correction: {_some(doubtful)}."
    text += f" Mean score better on {sum(verdict.gain > 0 for verdict in verdicts)} of {total}."
    if summary.gain is not None:
        text += f" Mean gain {summary.gain:+z.4f}" + _interval(summary.low, summary.high) + "."
    if summary.failed:
        text += f" It gave no model on seed {', '.join(map(str, summary.failed))} ({error}), so nothing is decided."
    return text


def contrast_sentence(contrast: Contrast, own: Summary, control: Summary) -> str:
    """What is left of a recipe's gain beside a control, in one sentence or two.

    Args:
        contrast: the comparison.
        own: summary of the recipe.
        control: summary of the control.

    Examples:
        >>> own, control = (Summary(name, "single", 0, 0, 1, 0.1, 0.0, 0.2, (), 1.0, 10, 30, 5.0) for name in "ab")
        >>> verdict = Verdict("a", "task", 0.9, "b", 0.8, 0.1, 0.05, 0.15, 0.01, 0.01, "helped")
        >>> contrast_sentence(Contrast("a", "b", "at equal steps", (verdict,), 0.1, 0.05, 0.15), own, control)
        ... # doctest: +NORMALIZE_WHITESPACE
        '`a` against `b` at equal steps (all candidates: 30 steps against 30): better on all 1, worse on none.
        Mean difference +0.1000 [+0.0500, +0.1500].'
    """
    text = f"`{contrast.recipe}` against `{contrast.control}` {contrast.question}"
    if not contrast.verdicts:
        return f"{text}: no seed has a model of both."
    total, undecided = len(contrast.verdicts), contrast.count("undecided")
    text += f" (all candidates: {own.total_steps:,} steps against {control.total_steps:,})"
    text += f": better on {_count(contrast.count('helped'), total)}, worse on {_count(contrast.count('hurt'), total)}"
    text += f", {undecided} of {total} undecided." if undecided else "."
    if contrast.gain is not None:
        text += f" Mean difference {contrast.gain:+z.4f}" + _interval(contrast.low, contrast.high) + "."
    if own.failed or control.failed:
        text += " One of the two gave no model on some seed, so nothing is decided."
    return text


def recommended(summaries: Sequence[Summary]) -> Summary | None:
    """The recipe that helped most tasks, else that helps most on average, and is shown to hurt none; None: there is none such.

    Args:
        summaries: of all recipes.
    """
    compared = [each for each in summaries if each.baseline and not each.hurt and not each.failed]
    safe = [each for each in compared if each.helped or (each.low is not None and each.low > 0)]
    return max(safe, key=lambda summary: (summary.helped, summary.gain or 0.0), default=None)


def overall_sentence(summaries: Sequence[Summary], verdicts: Sequence[Verdict], n_seeds: int) -> str:
    """The first line of a report: was anyone hurt, and what is worth using."""
    compared = [summary for summary in summaries if summary.baseline]
    if not compared:
        return "Only single-task baselines were trained: there is nothing to compare yet."
    if max(_total(summary) for summary in compared) == 1:
        return "One task: there is nothing to learn together; what differs between recipes is how they train it alone."
    if n_seeds < LEAST_SEEDS:
        some = f"{n_seeds} seed{'s' if n_seeds > 1 else ''}"
        return f"{some} cannot tell helped from lucky: use at least {LEAST_SEEDS}, better {GOOD_SEEDS}."
    best = recommended(compared)
    if best is not None and best.helped:
        n_doubtful = sum(v.recipe == best.recipe and v.word == "undecided" and (v.high or 0.0) < 0 for v in verdicts)
        tail = f"none is shown to be hurt, but {n_doubtful} in doubt" if n_doubtful else "none is shown to be hurt"
        return f"Learning together pays here: `{best.recipe}` helped {best.helped} of {_total(best)} tasks; {tail}."
    harmful = [summary for summary in compared if summary.hurt]
    if harmful:
        worst = max(harmful, key=lambda summary: summary.hurt)
        mixed = "" if not worst.helped else f", though it helped {worst.helped}"
        return f"Learning together has a price here: `{worst.recipe}` hurt {worst.hurt} of {_total(worst)} tasks{mixed}."
    return _on_average([summary for summary in compared if not summary.failed])


def picked_sentence(headline: str, summaries: Sequence[Summary]) -> str:
    """What it is worth that a headline names one of several recipes; empty where it names none, or there is only one.

    Examples:
        >>> found = [Summary(name, "single", 1, 0, 2, 0.1, 0.0, 0.2, (), 1.0, 10, 30, 5.0) for name in ("joint", "uw", "dwa")]
        >>> picked_sentence("Learning together pays here: `uw` helped 1 of 3 tasks.", found)
        'That is the most striking of 3 recipes, picked by these very scores: nothing is corrected for their number.'
    """
    compared = [summary for summary in summaries if summary.baseline]
    if len(compared) < 2 or not any(f"`{summary.recipe}`" in headline for summary in compared):
        return ""
    most = f"That is the most striking of {len(compared)} recipes"
    return f"{most}, picked by these very scores: nothing is corrected for their number."


def seeds_sentence(summaries: Sequence[Summary], n_seeds: int) -> str:
    """What more seeds could decide; empty where there are enough, where everything is decided, or for one task.

    Examples:
        >>> seeds_sentence([Summary("joint", "single", 0, 0, 42, 0.1, -0.1, 0.3, (), 1.0, 10, 30, 5.0)], n_seeds=5)
        '5 seeds are few for 42 tasks: after correction only large effects are decided. Try 10 or more.'
    """
    undecided = max((summary.undecided for summary in summaries), default=0)
    if not LEAST_SEEDS <= n_seeds < GOOD_SEEDS or not undecided:
        return ""
    total = max(_total(summary) for summary in summaries)
    if total == 1:
        return ""
    few = f"{n_seeds} seeds are few for {total} tasks"
    return f"{few}: after correction only large effects are decided. Try {GOOD_SEEDS} or more."


def _on_average(compared: Sequence[Summary]) -> str:
    """What can be said where no single task is decided."""
    for sign, word in ((1, "helps"), (-1, "hurts")):
        decided = [s for s in compared if s.low is not None and s.high is not None and min(sign * s.low, sign * s.high) > 0]
        if decided:
            most = max(decided, key=lambda summary: sign * (summary.gain or 0.0))
            who = f"`{most.recipe}` {word} on average over the tasks"
            return f"{who}; no single task is decided by itself."
    return "No recipe is shown to help or to hurt any task; the intervals say how large an effect may still hide."


def _total(summary: Summary) -> int:
    return summary.helped + summary.hurt + summary.undecided


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{low:+z.4f}, {high:+z.4f}]"
