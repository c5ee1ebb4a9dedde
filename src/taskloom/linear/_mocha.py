"""MOCHA: K tasks at K sites that keep their rows, learnt by rounds of local dual steps and a server that relates the tasks.

Letters: K tasks (one site each), n_t rows of site t, N rows in all, d features, W (K, d) coefficients.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any, Self

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import ClassifierTags, RegressorTags, Tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import validate_data

from taskloom.linear._base import LinearTasks
from taskloom.linear._check import is_missing
from taskloom.linear._mocha_run import Learning, MochaOptions, MochaState, is_done, read_result, run_round, start_mocha
from taskloom.linear._mocha_sites import Sites, make_sites, read_labels
from taskloom.linear._mocha_steps import DUAL_LOSSES
from taskloom.tasks import Array, DataError, OptionError, unknown


class Mocha(LinearTasks):
    """Federated multi-task learning (MOCHA): the rows of each task stay at its site, d numbers travel per site and round.

    With Omega the inverse of the covariance Sigma of the tasks it minimises

        sum_t (1 / n_t) sum_i loss(y_ti, x_ti' w_t) + (strength / 2) tr(W' Omega W)

    for a given Omega, such as a graph Laplacian plus a multiple of the identity, or over all Sigma of trace 1 as well. As
    min_Omega tr(W' Omega W) = ||W||_*^2, the latter is the loss plus (strength / 2) times the squared trace norm of W: tasks in
    a shared subspace of few dimensions. In a round each site takes dual steps on as many of its own rows as it has time for, or
    none at all, and sends what they change; the server adds it up. Sites need not do equal work, and may drop out.

    Every round has a certificate: no W has an objective below `objective_ * (1 - gap_trace_[-1])`. Where Sigma is learnt the
    certificate is of W and Sigma together.

    Source: Smith, Chiang, Sanjabi and Talwalkar, Federated multi-task learning, NIPS 2017. What we read is its abstract and
    introduction and its authors' published code, which has the hinge loss, the local steps, the server's update and the exact
    step of Sigma. Here the federation is simulated in one process. Ours, and why:

    - The step of Sigma. The exact step (`omega="paper"`) hardly turns the eigenvectors of Sigma once its eigenvalues spread,
      and stalls above the optimum. `omega="learn"` takes a matrix exponentiated gradient step before each round, whose fixed
      point is the optimum. Its stride grows where bounds prove that the optimum over W fell, and is cut where they prove that
      it is above its least so far. The exact step is taken once half of the gap or less is left to W, not after a fixed
      number of rounds.
    - The safety factor of the server's sum is the least one that is safe, at most the paper's (`safe_aggregation`).
    - Half the squared error as a second loss, and the certificate of a learnt Sigma, which are our derivations.
    - Intercepts, which the paper does not have. With squared loss each site centres its rows and targets, which makes its
      intercept exact and free of penalty. With hinge loss a free intercept would tie the dual variables of a site together, so
      rows get a constant feature 1 instead, which is penalised and shared as all others are.

    Args:
        loss: `hinge` for two classes, `squared` (half the squared error) for numbers.
        strength: lambda > 0. The smaller, the more rounds it takes.
        omega: `learn`, `paper`, or a (K, K) symmetric positive definite matrix, tasks in sorted order.
        rounds: most rounds.
        local_fraction: share of its rows that a site visits in a round, or (low, high), out of which each site draws its own
            share each round. Above 1 it passes over them again.
        drop_probability: chance of a site to send nothing in a round.
        tol: relative gap to stop at.
        seed: of visits, shares and drops.
        fit_intercept: whether there are intercepts.

    Attributes:
        coef_: (K, d) coefficients.
        intercept_: (K,) intercepts.
        tasks_: (K,) labels of the tasks, sorted.
        classes_: (2,) classes, sorted, the same for all tasks; not for squared loss.
        task_covariance_: (K, K) Sigma.
        objective_: what is minimised, at the coefficients.
        gap_trace_: (rounds,) (objective - its lower bound) / objective, after each round.
        n_iter_: rounds done.
        converged_: whether the gap is below `tol`; if not, fit warns with a `ConvergenceWarning`.
        message_: why not and what to do; empty if it is.
        state_: what the solver knows at the end; give it to `fit` as `state` to go on from there.
        shares_rows_: whether all tasks share the rows of X.
        is_single_: whether y was 1-D without task labels.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> X, tasks = rng.normal(size=(90, 4)), np.repeat(["a", "b", "c"], 30)
        >>> y = np.where(X[:, 0] + 0.1 * X[:, 1] > 0, "yes", "no")
        >>> model = Mocha(strength=1.0).fit(X, y, tasks=tasks)
        >>> model.converged_, model.predict([[2.0, 0, 0, 0]], tasks=["b"])
        (True, array(['yes'], dtype='<U3'))
        >>> bool(model.task_covariance_[0, 1] > 0.3)
        True
    """

    def __init__(  # noqa: PLR0913 - each setting is an argument of its own, as scikit-learn wants it
        self,
        *,
        loss: str = "hinge",
        strength: float = 0.1,
        omega: Any = "learn",
        rounds: int = 2000,
        local_fraction: float | tuple[float, float] = 0.5,
        drop_probability: float = 0.0,
        tol: float = 1e-6,
        seed: int = 0,
        fit_intercept: bool = True,
    ) -> None:
        self.loss = loss
        self.strength = strength
        self.omega = omega
        self.rounds = rounds
        self.local_fraction = local_fraction
        self.drop_probability = drop_probability
        self.tol = tol
        self.seed = seed
        self.fit_intercept = fit_intercept

    def fit(self, X: Any, y: Any, *, tasks: Any = None, state: MochaState | None = None) -> Self:
        """Learn from rows of K tasks.

        Args:
            X: (n, d) rows, dense.
            y: (n,) labels of own rows; (n, K) of shared rows, where NaN (None for names) is a missing label.
            tasks: (n,) the task of each row; None for shared rows.
            state: the `state_` of a fit on the same rows, to go on from; it is left as it is. `rounds` counts its rounds too.

        Raises:
            OptionError: a setting out of its range, or an Omega that does not suit the tasks.
            DataError: labels that do not suit the loss or the rows, a task without labels, or a state of something else.
        """
        options, Omega = self._options(), _read_omega(self.omega)
        X = validate_data(self, X, dtype=np.float64)
        labels = read_labels(y, tasks, len(X), are_classes=self.loss == "hinge")
        K, d = len(labels.names), X.shape[1]
        if Omega is not None and len(Omega) != K:
            raise OptionError(f"`omega` has shape {Omega.shape} for {K} tasks; give it a row and a column for each, ({K}, {K})")
        sites, centres, offsets = make_sites(X, labels, self.loss, fit_intercept=self.fit_intercept)
        Sigma = None if Omega is None else 0.5 * (np.linalg.inv(Omega) + np.linalg.inv(Omega).T)
        fresh = start_mocha(sites, options, Sigma)
        state = fresh if state is None else _continue(state, sites, options, fresh)
        while not is_done(options, state):
            run_round(sites, options, state)
        result = read_result(sites, options, state)
        W = result.coefficients
        self.coef_ = W[:, :d].copy()
        self.intercept_ = W[:, d].copy() if W.shape[1] > d else offsets - np.vecdot(W, centres)
        self.tasks_, self.shares_rows_, self.is_single_ = labels.names, tasks is None, tasks is None and np.ndim(y) == 1
        if self.loss == "hinge":
            self.classes_ = labels.classes
        self.task_covariance_, self.objective_ = result.covariance, result.certificate.primal
        self.gap_trace_, self.n_iter_, self.state_ = np.array(state.gaps), state.round, state
        self.converged_, self.message_ = not result.message, result.message
        if result.message:
            warnings.warn(f"Mocha: {result.message}", ConvergenceWarning, stacklevel=2)
        return self

    def predict(self, X: Any, *, tasks: Any = None) -> Array:
        """Classes or numbers of each row's task, (n,); of all tasks, (n, K), where `tasks` is None and they share rows."""
        scores = self._scores(X, tasks)
        return self.classes_[(scores > 0).astype(int)] if self.loss == "hinge" else scores

    @available_if(lambda self: self.loss == "hinge")
    def decision_function(self, X: Any, *, tasks: Any = None) -> Array:
        """Scores in the shape of `predict`: the second class is predicted where they are positive."""
        return self._scores(X, tasks)

    def score(self, X: Any, y: Any, *, tasks: Any = None) -> float:
        """Accuracy, or R squared for squared loss, over all rows; for shared rows the mean over the tasks' labelled rows.

        Raises:
            DataError: y of another shape than the predictions, or a task of shared rows without labels.
        """
        predicted, y = self.predict(X, tasks=tasks), np.asarray(y)
        if y.shape != predicted.shape:
            raise DataError(f"`y` has shape {y.shape}, the predictions {predicted.shape}; give a label for each, or NaN")
        n, labelled = len(predicted), ~is_missing(y)
        if not labelled.reshape(n, -1).any(0).all():
            raise DataError(
                "`y` has a column without labels; there is nothing to score its task by, so leave it out of the fit"
            )
        columns = zip(y.reshape(n, -1).T, predicted.reshape(n, -1).T, labelled.reshape(n, -1).T, strict=True)
        measure = accuracy_score if self.loss == "hinge" else r2_score
        return float(np.mean([measure(true[rows].tolist(), mine[rows].tolist()) for true, mine, rows in columns]))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.estimator_type = "classifier" if self.loss == "hinge" else "regressor"
        tags.classifier_tags = ClassifierTags(multi_class=False) if self.loss == "hinge" else None
        tags.regressor_tags = RegressorTags() if self.loss != "hinge" else None
        tags.target_tags.required = tags.target_tags.multi_output = True
        return tags

    def _options(self) -> MochaOptions:
        if self.loss not in DUAL_LOSSES:
            raise unknown("loss", str(self.loss), DUAL_LOSSES)
        learning: Learning = "fixed"
        if isinstance(self.omega, str):
            if self.omega not in {"learn", "paper"}:
                raise OptionError(f"`omega`={self.omega!r}: give 'learn', 'paper' or a (K, K) matrix")
            learning = "learn" if self.omega == "learn" else "paper"
        share = self.local_fraction if isinstance(self.local_fraction, tuple | list) else (self.local_fraction,) * 2
        if len(share) != 2:
            raise OptionError(f"`local_fraction`={share!r}: give one share, or a pair (low, high)")
        numbers = self.rounds, (share[0], share[1]), self.drop_probability, self.tol, self.seed
        return MochaOptions(self.strength, learning, *numbers)


def _read_omega(omega: Any) -> Array | None:
    """A checked (K, K) matrix; None for the name of a rule."""
    if isinstance(omega, str):
        return None
    try:
        Omega = np.asarray(omega, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise OptionError(f"`omega` is a {type(omega).__name__}; give 'learn', 'paper' or a (K, K) matrix") from error
    if Omega.ndim != 2 or Omega.size == 0 or len(Omega) != Omega.shape[1] or not np.isfinite(Omega).all():
        raise OptionError(f"`omega` has shape {Omega.shape}; give 'learn', 'paper' or a (K, K) matrix of finite numbers")
    least = float(np.linalg.eigvalsh(Omega)[0])
    if not np.allclose(Omega, Omega.T) or least <= 1e-12 * np.abs(Omega).max():
        raise OptionError(f"`omega` must be symmetric and positive definite (least eigenvalue {least:.1e}); add c * np.eye(K)")
    return Omega


def _continue(state: MochaState, sites: Sites, options: MochaOptions, fresh: MochaState) -> MochaState:
    """A copy of the state, if it is one of these rows and settings."""
    if not isinstance(state, MochaState):
        raise DataError(f"`state` is a {type(state).__name__}; give the `state_` of a fitted Mocha")
    shapes, expected = ([array.shape for array in (s.a, s.W, s.Sigma)] for s in (state, fresh))
    if shapes != expected:
        raise DataError(f"`state` is of other rows: shapes {shapes}, here {expected}; fit without `state`")
    gap = read_result(sites, options, state).certificate.relative
    if state.gaps and not np.isclose(gap, state.gaps[-1], rtol=1e-6, atol=1e-12):
        raise DataError(
            f"`state` has a gap of {state.gaps[-1]:.3e}, but {gap:.3e} with these rows and settings; give the rows, `strength` "
            "and kind of `omega` that it comes from, or fit without `state`"
        )
    return copy.deepcopy(state)
