"""The one training loop, and what it takes: an objective, a schedule of epsilon, an optimizer."""

from paretune.training.averaging import soup, wise_ft
from paretune.training.loop import train
from paretune.training.objectives import (
    FARE,
    MART,
    OBJECTIVES,
    TRADES,
    AdversarialTraining,
    Natural,
    Objective,
)
from paretune.training.optimizers import AdamW
from paretune.training.schedules import EpsilonSchedule

__all__ = [
    "FARE",
    "MART",
    "OBJECTIVES",
    "TRADES",
    "AdamW",
    "AdversarialTraining",
    "EpsilonSchedule",
    "Natural",
    "Objective",
    "soup",
    "train",
    "wise_ft",
]
