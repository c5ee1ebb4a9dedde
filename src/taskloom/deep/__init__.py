"""Nets that learn many tasks.

`fit` trains one net on all tasks: any `nn.Module` that maps rows to one output column per task (one per class of a multiclass
task), by default a `SharedBottom` that `MLP` makes. `fit_singles` trains one net per task, all of them side by side. The loop
takes care of missing labels, of tasks of uneven size, of early stopping, and of checkpoints that resume to the bit; it runs on
lightning-fabric, so device and precision are options.

How the losses of a batch move the weights is an `UpdateStep`; `SumStep` is the plain sum. The recipes `single` and `joint`
are `SingleRecipe` and `JointRecipe`.
"""

from taskloom.deep._fit import NetFit, SingleFits, fit, fit_singles
from taskloom.deep._nets import MLP, NetFactory, SharedBottom
from taskloom.deep._options import FitOptions
from taskloom.deep._predictor import NetPredictor
from taskloom.deep._recipes import JointRecipe, SingleRecipe
from taskloom.deep._stacked import StackedNets
from taskloom.deep._update import SumStep, UpdateStep

__all__ = [
    "MLP",
    "FitOptions",
    "JointRecipe",
    "NetFactory",
    "NetFit",
    "NetPredictor",
    "SharedBottom",
    "SingleFits",
    "SingleRecipe",
    "StackedNets",
    "SumStep",
    "UpdateStep",
    "fit",
    "fit_singles",
]
