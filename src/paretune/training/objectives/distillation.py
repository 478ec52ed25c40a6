"""Knowledge distillation: the softened answers of a model that was trained before."""

import copy
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paretune._values import told
from paretune.attacks import Attack
from paretune.backbones.backbone import Backbone, fingerprint, tensor_digests
from paretune.data.images import ImageData, check_same_classes
from paretune.interchange.loading import load_adapter
from paretune.strategies.mechanics.adapting import remove_adapter
from paretune.training.objectives.base import Copies, Objective, Term, TrainingBatch


@dataclass(frozen=True)
class Distillation(Objective):
    """T² · KL(softmax(t / T) ‖ softmax(z / T)), the mean over the images as they are.

    Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", https://arxiv.org/abs/1503.02531, section 2: z are
    the logits in training, t those of the teacher in evaluation mode. It learns from the teacher alone, without labels; with
    them it is ``0.1 * Natural() + 0.9 * Distillation("runs/robust")``, beside an attack
    ``AdversarialTraining(PGD(Linf(4/255))) + Distillation("runs/probe")``.

    The model at the start of training is no teacher, because its head is fresh: train a :class:`~paretune.LinearProbe` and
    give that; or hold the features, by :class:`~paretune.training.FeatureDistillation`.

    Args:
        teacher: directory of a finished run of the same task on the same backbone, with whatever strategy, or of an adapter.
        temperature: T, above 0.

    Raises:
        TypeError: ``teacher`` is no text.
        ValueError: ``temperature`` is no finite number above 0.
    """

    teacher: str
    _: KW_ONLY
    temperature: float = 4.0

    def __post_init__(self) -> None:
        if not isinstance(self.teacher, str | Path):
            raise TypeError(f"Distillation: teacher must be the directory of a run, got {self.teacher!r}")
        object.__setattr__(self, "teacher", str(self.teacher))
        check_temperature(self)

    @property
    def attack(self) -> Attack | None:
        """None."""
        return None

    def check(self, model: Backbone, data: ImageData) -> None:
        """Raise ValueError if there is no such teacher, or it is one of another backbone or of other classes."""
        _Taught(self, model, data)

    def begin(self, model: Backbone, data: ImageData, seed: int) -> Term:
        """With a copy of the model that has the adapter of the teacher."""
        return _Taught(self, model, data)

    def loss(self, model: nn.Module, batch: TrainingBatch, attacked: Any) -> tuple[Tensor, Tensor | None]:
        """Not of the value, which :meth:`begin` sets to work."""
        raise NotImplementedError("call begin() first")


class _Taught(Term):
    def __init__(self, objective: Distillation, model: Backbone, data: ImageData) -> None:
        self.objective, self.temperature = objective, objective.temperature
        place = Path(objective.teacher)
        self.teacher = copy.deepcopy(model)
        remove_adapter(self.teacher)
        with told("Distillation: teacher", objective.teacher):
            load_adapter(self.teacher, place / "adapter" if (place / "adapter").is_dir() else place)
            check_same_classes(self.teacher.num_classes, self.teacher.classes, data.train.classes)
        self.teacher.eval().requires_grad_(False)

    def attacked(self, copy: Copies, batch: TrainingBatch) -> Tensor:
        with torch.no_grad():
            return batch.checked(self.teacher(batch.images))

    def loss(self, model: nn.Module, batch: TrainingBatch, attacked: Tensor) -> tuple[Tensor, Tensor | None]:
        logits = batch.checked(model(batch.images))
        learnt, taught = ((output / self.temperature).log_softmax(1) for output in (logits, attacked))
        divergence = (taught.exp() * (taught - learnt)).sum(1)
        return self.temperature**2 * batch.mean(divergence), logits.detach()

    def tensors(self) -> dict[str, Tensor]:
        """A digest of the teacher, by which a resumed run knows that it has the same."""
        digest = fingerprint(self.teacher.architecture, tensor_digests(self.teacher.module.state_dict()))
        return {"teacher": torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        if not torch.equal(tensors["teacher"].cpu(), self.tensors()["teacher"]):
            raise ValueError(
                f"Distillation: teacher={self.objective.teacher!r} is another one than this run began with; put that back, "
                "or start over with resume=False"
            )


def check_temperature(objective: Any) -> None:
    """Raise ValueError unless ``objective.temperature`` is a finite number above 0; make it a float."""
    value = objective.temperature
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        name = type(objective).__name__
        raise ValueError(f"{name}: temperature must be a finite number above 0, got {value!r}")
    object.__setattr__(objective, "temperature", float(value))
