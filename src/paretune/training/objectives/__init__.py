"""What training minimises."""

from paretune.training.objectives.adversarial import AdversarialTraining as AdversarialTraining
from paretune.training.objectives.base import Objective, Sum, Term, TrainingBatch
from paretune.training.objectives.natural import Natural as Natural

#: The objectives by the names that the command line reads: all that are imported here.
OBJECTIVES: dict[str, type[Objective]] = {
    name: kind
    for name, kind in globals().items()
    if isinstance(kind, type) and issubclass(kind, Objective) and kind is not Objective
}

__all__ = ["OBJECTIVES", "Objective", "Sum", "Term", "TrainingBatch", *OBJECTIVES]
