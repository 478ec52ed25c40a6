"""What training minimises."""

from collections.abc import Mapping

from paretune._values import from_dict, parse
from paretune.attacks import ATTACKS, THREATS
from paretune.training.objectives.adversarial import AdversarialTraining as AdversarialTraining
from paretune.training.objectives.atta import ATTA as ATTA
from paretune.training.objectives.base import Copies, Objective, Sum, Term, TrainingBatch
from paretune.training.objectives.distillation import Distillation as Distillation
from paretune.training.objectives.ewc import EWC as EWC
from paretune.training.objectives.fare import FARE as FARE
from paretune.training.objectives.feature_distillation import FeatureDistillation as FeatureDistillation
from paretune.training.objectives.l2sp import L2SP as L2SP
from paretune.training.objectives.lwf import LwF as LwF
from paretune.training.objectives.mart import MART as MART
from paretune.training.objectives.natural import Natural as Natural
from paretune.training.objectives.trades import TRADES as TRADES

#: The objectives by the names that the command line reads: all that are imported here.
OBJECTIVES: dict[str, type[Objective]] = {
    name: kind
    for name, kind in globals().items()
    if isinstance(kind, type) and issubclass(kind, Objective) and kind is not Objective
}


def read_objective(value: object) -> Objective:
    """From a text such as ``"TRADES(beta=6) + 0.1*FARE()"``, or a dictionary as :meth:`Objective.to_dict` makes it.

    Raises:
        ValueError: it names no objective, or something else.
    """
    if isinstance(value, Objective):
        return value
    choices: dict[str, type] = {**OBJECTIVES, **ATTACKS, **THREATS}
    read = from_dict(value, choices) if isinstance(value, Mapping) else parse(str(value), choices)
    if not isinstance(read, Objective):
        raise ValueError(f"{value!r} is no objective; there are: {', '.join(OBJECTIVES)}")
    return read


__all__ = ["OBJECTIVES", "Copies", "Objective", "Sum", "Term", "TrainingBatch", "read_objective", *OBJECTIVES]
