"""Nets that learn many tasks.

`fit` trains one net on all tasks: any `nn.Module` that maps rows to one output column per task (one per class of a multiclass
task), by default a `SharedBottom` that `MLP` makes. `fit_singles` trains one net per task, all of them side by side, and
`fit_groups` a joint net for each of many groups of tasks. The loop takes care of missing labels, of tasks of uneven size, of
early stopping, and of checkpoints that resume to the bit; it runs on lightning-fabric, so device and precision are options.

How the losses of a batch move the weights is an `UpdateStep`: `SumStep` is the plain sum, `AdaTaskStep` gives each task its
own adaptive learning rate, `AggregatedStep` joins the tasks' gradients by an aggregator such as those of torchjd,
`FeaturewiseStep` does so at the features that they share. `SelectiveGroups` groups tasks while they train and updates group
by group; `RepeatedStep`, `RandomGroups`, `Singletons`, `FixedGroups` and `CycledGroups` are there to hold it against.
`AdaTaskAdam` and its kin are torch optimizers of their own, for any training loop. `SingleRecipe`, `JointRecipe`,
`AdaTaskRecipe` and others bring them into a study.
"""

from taskloom.deep._adatask import AdaTaskAdagrad, AdaTaskAdam, AdaTaskAdamW, AdaTaskLite, AdaTaskRMSprop
from taskloom.deep._adatask_settings import Joining, LossWeightsWarning
from taskloom.deep._aggregated_recipes import (
    AggregatedRecipe,
    AlignedMTLRecipe,
    CAGradRecipe,
    FairGradRecipe,
    IMTLGRecipe,
    MGDARecipe,
    NashMTLRecipe,
    PCGradRecipe,
    UPGradRecipe,
)
from taskloom.deep._balancing_recipes import AdaTaskRecipe
from taskloom.deep._dominance import DominanceMeter
from taskloom.deep._dominance_layers import DominanceRow
from taskloom.deep._featurewise_step import FeaturewiseStep
from taskloom.deep._fit import NetFit, SingleFits, fit, fit_singles, new_net
from taskloom.deep._group_controls import CycledGroups, FixedGroups, RandomGroups, RepeatedStep, Singletons
from taskloom.deep._group_fits import GroupFitOptions, GroupFits, fit_groups
from taskloom.deep._group_passes import GroupPasses, StepCosts
from taskloom.deep._group_step import GroupStep
from taskloom.deep._nets import MLP, NetFactory, SharedBottom
from taskloom.deep._options import FitOptions
from taskloom.deep._predictor import NetPredictor
from taskloom.deep._recipes import JointRecipe, SingleRecipe
from taskloom.deep._scalarized_recipes import DWARecipe, FAMORecipe, ScalarizedRecipe, UWRecipe
from taskloom.deep._scalarized_step import ScalarizedStep
from taskloom.deep._selective import Selection, SelectiveGroups, SelectiveOptions
from taskloom.deep._selective_recipes import GroupUpdateRecipe, JointXMRecipe, RandomGroupsRecipe, SelectiveRecipe
from taskloom.deep._shared_weights import is_shared
from taskloom.deep._stacked import StackedNets
from taskloom.deep._task_gradients import AdaTaskStep, AggregatedStep, TaskGradientStep, task_gradients
from taskloom.deep._task_groups import group_tasks
from taskloom.deep._update import SumStep, UpdateStep

__all__ = [
    "MLP",
    "AdaTaskAdagrad",
    "AdaTaskAdam",
    "AdaTaskAdamW",
    "AdaTaskLite",
    "AdaTaskRMSprop",
    "AdaTaskRecipe",
    "AdaTaskStep",
    "AggregatedRecipe",
    "AggregatedStep",
    "AlignedMTLRecipe",
    "CAGradRecipe",
    "CycledGroups",
    "DWARecipe",
    "DominanceMeter",
    "DominanceRow",
    "FAMORecipe",
    "FairGradRecipe",
    "FeaturewiseStep",
    "FitOptions",
    "FixedGroups",
    "GroupFitOptions",
    "GroupFits",
    "GroupPasses",
    "GroupStep",
    "GroupUpdateRecipe",
    "IMTLGRecipe",
    "Joining",
    "JointRecipe",
    "JointXMRecipe",
    "LossWeightsWarning",
    "MGDARecipe",
    "NashMTLRecipe",
    "NetFactory",
    "NetFit",
    "NetPredictor",
    "PCGradRecipe",
    "RandomGroups",
    "RandomGroupsRecipe",
    "RepeatedStep",
    "ScalarizedRecipe",
    "ScalarizedStep",
    "Selection",
    "SelectiveGroups",
    "SelectiveOptions",
    "SelectiveRecipe",
    "SharedBottom",
    "SingleFits",
    "SingleRecipe",
    "Singletons",
    "StackedNets",
    "StepCosts",
    "SumStep",
    "TaskGradientStep",
    "UPGradRecipe",
    "UWRecipe",
    "UpdateStep",
    "fit",
    "fit_groups",
    "fit_singles",
    "group_tasks",
    "is_shared",
    "new_net",
    "task_gradients",
]
