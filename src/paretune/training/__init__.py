"""The one training loop, and what it takes: an objective, a schedule of epsilon, an optimizer."""

from paretune.training.averaging import soup, wise_ft
from paretune.training.freezing import FREEZING, LPFT, Freezing, GradualUnfreezing, NoFreezing, RoLI
from paretune.training.loop import train
from paretune.training.objectives import (
    ATTA,
    EWC,
    FARE,
    L2SP,
    MART,
    OBJECTIVES,
    TRADES,
    AdversarialTraining,
    Distillation,
    FeatureDistillation,
    LwF,
    Natural,
    Objective,
)
from paretune.training.optimizers import AdamW
from paretune.training.schedules import SCHEDULES, Auto, EpsilonSchedule, Fixed, Linear, TwoHinge, Uniform
from paretune.training.tasks import view
from paretune.training.together import train_tasks

__all__ = [
    "ATTA",
    "EWC",
    "FARE",
    "FREEZING",
    "L2SP",
    "LPFT",
    "MART",
    "OBJECTIVES",
    "SCHEDULES",
    "TRADES",
    "AdamW",
    "AdversarialTraining",
    "Auto",
    "Distillation",
    "EpsilonSchedule",
    "FeatureDistillation",
    "Fixed",
    "Freezing",
    "GradualUnfreezing",
    "Linear",
    "LwF",
    "Natural",
    "NoFreezing",
    "Objective",
    "RoLI",
    "TwoHinge",
    "Uniform",
    "soup",
    "train",
    "train_tasks",
    "view",
    "wise_ft",
]
