"""The type of arrays that say who is in a group.

Letters: K tasks, G groups.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# (G, K), or (K,) of one group.
Members = NDArray[np.bool_]
