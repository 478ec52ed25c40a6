"""The one training loop, and what it takes: an objective, a schedule of epsilon, an optimizer."""

from paretune.training.loop import train
from paretune.training.objectives import OBJECTIVES, AdversarialTraining, Natural, Objective
from paretune.training.optimizers import AdamW
from paretune.training.schedules import SCHEDULES, Auto, EpsilonSchedule, Fixed, Linear, TwoHinge, Uniform

__all__ = [
    "OBJECTIVES",
    "SCHEDULES",
    "AdamW",
    "AdversarialTraining",
    "Auto",
    "EpsilonSchedule",
    "Fixed",
    "Linear",
    "Natural",
    "Objective",
    "TwoHinge",
    "Uniform",
    "train",
]
