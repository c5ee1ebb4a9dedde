"""What every linear estimator of K tasks shares: its fitted attributes, scores of rows, and predictions.

Letters: K tasks, n rows, d features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from taskloom.linear._check import find_tasks
from taskloom.tasks import Array, DataError, Rows


class LinearTasks(BaseEstimator):
    """A fitted linear model of each of K tasks.

    Attributes:
        coef_: (K, d) coefficients.
        intercept_: (K,) intercepts.
        tasks_: (K,) labels of the tasks, sorted; 0 ... K - 1 for shared rows.
        shares_rows_: whether all tasks share the rows of X.
        is_single_: whether y was 1-D without task labels.
    """

    coef_: Array
    intercept_: Array
    tasks_: Array
    shares_rows_: bool
    is_single_: bool

    def _scores(self, X: Any, tasks: Any = None) -> Array:
        """X @ w + b of each row's task, (n,); of all tasks, (n, K), where `tasks` is None and they share rows."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
        if tasks is None:
            if not self.shares_rows_:
                raise DataError("`tasks` is missing: the tasks have their own rows, so give the task of each row")
            scores = X @ self.coef_.T + self.intercept_
            return scores[:, 0] if self.is_single_ else scores
        places = self._places(tasks, X.shape[0])
        # The last row of both is the mean model, which the index -1 of an unseen task picks.
        coef = np.vstack([self.coef_, self.coef_.mean(0)])
        intercept = np.append(self.intercept_, self.intercept_.mean())
        scores = np.empty(X.shape[0])
        for place in np.unique(places):
            rows = np.flatnonzero(places == place)
            scores[rows] = X[rows] @ coef[place] + intercept[place]
        return scores

    def _places(self, tasks: Any, n: int) -> Rows:
        """Which of the tasks each of n rows belongs to; -1 is the mean of all, for an unseen task."""
        places = find_tasks(tasks, self.tasks_, n)
        if (places < 0).any() and getattr(self, "unseen", None) != "mean":
            label = np.asarray(tasks)[int(np.flatnonzero(places < 0)[0])]
            label = label.item() if isinstance(label, np.generic) else label
            mean = "" if not hasattr(self, "unseen") else ", or set unseen='mean' to predict it by the mean of all models"
            raise DataError(f"`tasks`: {label!r} was not seen in training ({len(self.tasks_)} tasks were); correct it{mean}")
        return places
