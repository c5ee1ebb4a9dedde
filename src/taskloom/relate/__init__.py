"""Which tasks should learn together: how tasks relate, and the best groups under a budget.

An `Affinity` is a K x K matrix with a direction (row = receiver, column = source). A measure makes one out of data and a net;
`cluster` and `select` make `Groups` out of it:

    affinity = labels(None, data)
    groups = select(affinity, budget=3)

`survey` takes a first look at a table: a measure, its groups, and how far both agree with themselves and with the labels.
`select` is exact up to 18 tasks (16 with costs), and says how far from the best of its candidates it may be beyond.
`train_groups` trains groups for real, many nets side by side, and `verify` chooses again in the light of what they came to.
"""

from taskloom.relate._affinity import Affinity, Cost, as_affinity
from taskloom.relate._cluster import cluster
from taskloom.relate._datamap import datamap
from taskloom.relate._divergence import divergence
from taskloom.relate._gradtag import gradtag
from taskloom.relate._gram import gram
from taskloom.relate._group_training import GroupScores, reliability, train_groups
from taskloom.relate._groups import Groups
from taskloom.relate._joint_run import JointRun, joint_run
from taskloom.relate._labels import labels
from taskloom.relate._lookahead import lookahead
from taskloom.relate._options import AffinityWarning, MeasureOptions
from taskloom.relate._pictures import as_text, dendrogram, graph_picture, heat_map
from taskloom.relate._recipe import GroupedRecipe
from taskloom.relate._samplewise import samplewise
from taskloom.relate._samplewise_cosine import samplewise_cosine
from taskloom.relate._select import select
from taskloom.relate._selective_affinity import tracked
from taskloom.relate._surrogate import Surrogate, fit_surrogate
from taskloom.relate._survey import Survey, SurveyOptions, survey
from taskloom.relate._survey_report import write_survey
from taskloom.relate._task2vec import task2vec
from taskloom.relate._trained import pairwise, surrogate
from taskloom.relate._values import GroupGains, group_gains
from taskloom.relate._verify import Verification, VerifyOptions, VerifyRound, refine, verify

__all__ = [
    "Affinity",
    "AffinityWarning",
    "Cost",
    "GroupGains",
    "GroupScores",
    "GroupedRecipe",
    "Groups",
    "JointRun",
    "MeasureOptions",
    "Surrogate",
    "Survey",
    "SurveyOptions",
    "Verification",
    "VerifyOptions",
    "VerifyRound",
    "as_affinity",
    "as_text",
    "cluster",
    "datamap",
    "dendrogram",
    "divergence",
    "fit_surrogate",
    "gradtag",
    "gram",
    "graph_picture",
    "group_gains",
    "heat_map",
    "joint_run",
    "labels",
    "lookahead",
    "pairwise",
    "refine",
    "reliability",
    "samplewise",
    "samplewise_cosine",
    "select",
    "surrogate",
    "survey",
    "task2vec",
    "tracked",
    "train_groups",
    "verify",
    "write_survey",
]
