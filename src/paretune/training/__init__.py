"""The one training loop, and what it takes: an objective, a schedule of epsilon, an optimizer."""

from paretune.training.freezing import FREEZING, LPFT, Freezing, GradualUnfreezing, NoFreezing, RoLI
from paretune.training.loop import train
from paretune.training.objectives import OBJECTIVES, AdversarialTraining, Natural, Objective
from paretune.training.optimizers import AdamW
from paretune.training.schedules import SCHEDULES, Auto, EpsilonSchedule, Fixed, Linear, TwoHinge, Uniform

__all__ = [
    "FREEZING",
    "LPFT",
    "OBJECTIVES",
    "SCHEDULES",
    "AdamW",
    "AdversarialTraining",
    "Auto",
    "EpsilonSchedule",
    "Fixed",
    "Freezing",
    "GradualUnfreezing",
    "Linear",
    "Natural",
    "NoFreezing",
    "Objective",
    "RoLI",
    "TwoHinge",
    "Uniform",
    "train",
]
