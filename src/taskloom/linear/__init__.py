"""Linear models of many tasks.

So far the linear single-task baseline: `RidgeRecipe`, known to studies and the command line as `ridge`.
"""

from taskloom.linear._predictor import LinearPredictor
from taskloom.linear._ridge import RidgeRecipe

__all__ = ["LinearPredictor", "RidgeRecipe"]
