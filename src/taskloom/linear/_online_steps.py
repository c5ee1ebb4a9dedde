"""One round of online multi-task learning on plain arrays: losses, relations, weights; and rows dealt into rounds.

Letters: K tasks, J of them with an example in the round, n rows, d features (a constant one among them, if any).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from taskloom.tasks import Array

Loss = Literal["hinge", "logistic", "squared"]
Mode = Literal["incremental", "exact", "fixed"]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Rule:
    """How a round changes the state.

    Attributes:
        loss: what an example costs a model.
        alpha: share of a task's own example in its step.
        learning_rate: length C of a step.
        temperature: price lambda of leaving the former relations.
        mode: how relations follow the losses.
    """

    loss: Loss
    alpha: float
    learning_rate: float
    temperature: float
    mode: Mode


@dataclass
class State:
    """All that a round reads and writes.

    Attributes:
        weights: (K, d) models.
        log_relation: (K, K) logarithms of the relations, -inf on the diagonal.
        losses: (K,) summed losses of each task's own examples, each before it was learnt from.
        mistakes: (K,) numbers of wrongly predicted signs among them.
        counts: (K,) numbers of own examples.
    """

    weights: Array
    log_relation: Array
    losses: Array
    mistakes: Places
    counts: Places


def start_state(n_tasks: int, n_features: int) -> State:
    """Zero weights, uniform relations.

    Examples:
        >>> np.exp(start_state(3, 2).log_relation[0])
        array([0. , 0.5, 0.5])
    """
    return State(
        np.zeros((n_tasks, n_features)),
        _uniform(n_tasks),
        np.zeros(n_tasks),
        np.zeros(n_tasks, dtype=np.int64),
        np.zeros(n_tasks, dtype=np.int64),
    )


def grow_state(state: State, places: Places, n_tasks: int) -> State:
    """The state of more tasks; a new one starts as tasks do at the beginning.

    To each old row of relations the new tasks are added with that row's mean share, 1 / (K - 1); then it is divided by its sum.

    Args:
        state: of K tasks.
        places: (K,) where each old task stands among the new ones.
        n_tasks: number of tasks from now on.

    Examples:
        >>> old = start_state(3, 1)
        >>> old.log_relation[0] = np.log([1e-300, 0.8, 0.2])
        >>> np.exp(grow_state(old, np.arange(3), 5).log_relation[0]).round(3)
        array([0.  , 0.4 , 0.1 , 0.25, 0.25])
    """
    grown = start_state(n_tasks, state.weights.shape[1])
    for name in ("weights", "losses", "mistakes", "counts"):
        getattr(grown, name)[places] = getattr(state, name)
    if len(places) > 1:
        grown.log_relation[np.ix_(places, places)] = state.log_relation + np.log((len(places) - 1) / (n_tasks - 1))
    return grown


def _uniform(n_tasks: int) -> Array:
    log_relation = np.full((n_tasks, n_tasks), -np.log(max(n_tasks - 1, 1)))
    np.fill_diagonal(log_relation, -np.inf)
    return log_relation


def losses_and_pulls(loss: Loss, scores: Array, y: Array) -> tuple[Array, Array]:
    """Loss of each score, and minus its derivative by the score.

    Args:
        loss: `hinge` max(0, 1 - y s), `logistic` log(1 + exp(-y s)), with y = -1 or 1; `squared` (y - s)^2 / 2.
        scores: (K, J) scores s of each model on each example.
        y: (J,) targets.

    Examples:
        >>> losses_and_pulls("hinge", np.array([[0.25, 2.0]]), np.array([1.0, 1.0]))
        (array([[0.75, 0.  ]]), array([[1., 0.]]))
    """
    if loss == "squared":
        residuals = y - scores
        return residuals**2 / 2, residuals
    margins = scores * y
    if loss == "hinge":
        losses = np.maximum(1 - margins, 0)
        return losses, (losses > 0) * y
    return np.logaddexp(0, -margins), expit(-margins) * y


def step_relation(log_relation: Array, losses: Array, present: Places, rate: float, *, memoryless: bool) -> Array:
    """The relations after a round: each row's shares of the present tasks move towards those with small losses.

    A row minimises rate <q, losses> + KL(q | former shares) over shares q of the present other tasks with the same sum as
    before; memoryless: with uniform shares in place of the former. Where all K tasks are present the sum is 1.

    Args:
        log_relation: (K, K) logarithms, -inf on the diagonal.
        losses: (K, J) of each model on each present task's example.
        present: (J,) tasks with an example.
        rate: C (1 - alpha) / lambda.
        memoryless: forget the former shares.

    Returns:
        (K, K) logarithms: no share is ever lost to underflow.

    Examples:
        >>> start = start_state(3, 1).log_relation
        >>> losses = np.array([[0, 0, np.log(3)]] * 3)
        >>> np.exp(step_relation(start, losses, np.arange(3), 1.0, memoryless=False)).round(2)
        array([[0.  , 0.75, 0.25],
               [0.75, 0.  , 0.25],
               [0.5 , 0.5 , 0.  ]])
    """
    # The share of one task alone has nothing to be exchanged with.
    if len(present) < 2:
        return log_relation
    former = log_relation[:, present]
    prior = np.where(np.isneginf(former), -np.inf, 0.0) if memoryless else former
    moved = prior - rate * losses
    # Exactly zero where all are present, so that rounding does not add up over a long stream.
    log_sum = 0.0 if len(present) == len(log_relation) else _log_sum_exp(former)
    stepped = log_relation.copy()
    stepped[:, present] = moved - _log_sum_exp(moved) + log_sum
    return stepped


def _log_sum_exp(values: Array) -> Array:
    top = values.max(axis=1, keepdims=True)
    return top + np.log(np.exp(values - top).sum(axis=1, keepdims=True))


def step_shares(log_relation: Array, present: Places, alpha: float) -> Array:
    """Share of each present task's example in each model's step, (K, J): alpha for the own one, (1 - alpha) p for the others.

    Examples:
        >>> step_shares(start_state(3, 1).log_relation, np.array([0, 2]), 0.5)
        array([[0.5 , 0.25],
               [0.25, 0.25],
               [0.25, 0.5 ]])
    """
    shares = (1 - alpha) * np.exp(log_relation[:, present])
    # A lone task has nobody to give 1 - alpha to.
    shares[present, np.arange(len(present))] = alpha if len(log_relation) > 1 else 1.0
    return shares


def run_round(state: State, rule: Rule, X: Array, y: Array, present: Places) -> None:
    """Score, charge, then move the relations and the weights of a state in place.

    Args:
        state: of K tasks.
        rule: the settings.
        X: (J, d) one example of each present task.
        y: (J,) targets; -1 or 1 for `hinge` and `logistic`.
        present: (J,) tasks, each once.
    """
    scores = state.weights @ X.T
    losses, pulls = losses_and_pulls(rule.loss, scores, y)
    own = (present, np.arange(len(present)))
    state.losses[present] += losses[own]
    state.mistakes[present] += (scores[own] > 0) != (y > 0)
    state.counts[present] += 1
    if rule.mode != "fixed":
        rate = rule.learning_rate * (1 - rule.alpha) / rule.temperature
        state.log_relation = step_relation(state.log_relation, losses, present, rate, memoryless=rule.mode == "exact")
    shares = step_shares(state.log_relation, present, rule.alpha)
    state.weights += (rule.learning_rate * (shares * pulls)) @ X


def deal_rounds(owner: Places) -> list[Places]:
    """Rows of each round: the i-th row of every task is in round i; within a round rows are sorted by task.

    Args:
        owner: (n,) task of each row.

    Examples:
        >>> deal_rounds(np.array([1, 1, 0, 1]))
        [array([2, 0]), array([1]), array([3])]
    """
    order = np.argsort(owner, kind="stable")
    first = np.cumsum(np.bincount(owner)) - np.bincount(owner)
    turn = np.empty_like(order)
    turn[order] = np.arange(len(owner)) - first[owner[order]]
    dealt = np.lexsort((owner, turn))
    return np.split(dealt, np.flatnonzero(np.diff(turn[dealt])) + 1)
