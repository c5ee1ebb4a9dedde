"""Features as they were read: numbers and categories, not yet imputed or encoded.

Letters: n rows, p numeric columns, q categorical columns.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from taskloom.tasks._arrays import Array
from taskloom.tasks._errors import DataError


@dataclass(frozen=True)
class Features:
    """The features of n rows.

    Attributes:
        numeric: (n, p) numbers with NaN for missing, or (n, ...) for images and other arrays.
        numeric_names: p names; empty where `numeric` has more than two dimensions.
        categorical: (n, q) strings with None for missing.
        categorical_names: q names.

    Raises:
        DataError: parts of different lengths, or names that do not fit.
    """

    numeric: Array
    numeric_names: tuple[str, ...] = ()
    categorical: NDArray[np.object_] = field(default_factory=lambda: np.empty((0, 0), dtype=object))
    categorical_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.categorical.size == 0 and not self.categorical_names:
            object.__setattr__(self, "categorical", np.empty((len(self.numeric), 0), dtype=object))
        if self.numeric.ndim < 2:
            raise DataError(f"`X` has shape {self.numeric.shape}; it needs a row and a feature dimension: (n, d)")
        if self.numeric.ndim == 2 and not self.numeric_names:
            object.__setattr__(self, "numeric_names", tuple(f"x{i}" for i in range(self.numeric.shape[1])))
        if len(self.categorical) != len(self.numeric):
            raise DataError(f"numeric features have {len(self.numeric)} rows, categorical ones {len(self.categorical)}")
        if self.numeric.ndim == 2 and len(self.numeric_names) != self.numeric.shape[1]:
            raise DataError(f"{len(self.numeric_names)} names for {self.numeric.shape[1]} numeric features")

    def __len__(self) -> int:
        return len(self.numeric)

    @property
    def names(self) -> tuple[str, ...]:
        """All column names, numeric ones first."""
        return self.numeric_names + self.categorical_names

    @property
    def n_columns(self) -> int:
        """Columns as read (before categories are encoded); for arrays of more dimensions, entries of one row."""
        return int(np.prod(self.numeric.shape[1:])) + self.categorical.shape[1]

    def take(self, rows: NDArray[np.int64]) -> Features:
        """The features of some rows, copied."""
        return Features(self.numeric[rows], self.numeric_names, self.categorical[rows], self.categorical_names)

    def update_hash(self, digest: hashlib._Hash) -> None:
        """Feed everything that identifies these features to a running hash."""
        digest.update(repr((self.numeric.shape, self.numeric.dtype.str, self.names)).encode())
        digest.update(np.ascontiguousarray(self.numeric).tobytes())
        digest.update(repr(self.categorical.tolist()).encode())
