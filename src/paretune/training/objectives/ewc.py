"""Elastic weight consolidation: what matters for the model's answers stays near where training starts from."""

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from paretune._values import check_choices, check_whole
from paretune.backbones.backbone import Backbone
from paretune.backbones.features import entering_head
from paretune.backbones.heads import pretrained_head
from paretune.backbones.modes import evaluation_mode
from paretune.data.images import ImageData
from paretune.training.objectives.anchored import Anchor, Anchored, Penalty, check_shown, square
from paretune.training.objectives.base import Term


@dataclass(frozen=True)
class EWC(Anchor):
    """Σ F_i/2 · (θ_i − θ*_i)², to be added to what learns: ``Natural() + 100 * EWC()``.

    Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks", https://arxiv.org/abs/1612.00796,
    equation 3, of which λ is the weight in the sum. θ are the tensors of :class:`~paretune.training.L2SP`: the weights
    outside the head that training changes, as the network computes with them (for LoRA, W + s · B A), and the parameters of
    what is inserted; θ* is the start of training. F takes as much memory as they do.

    F is the diagonal of the Fisher information at the start, in evaluation mode, on images of the train split, because those
    of pretraining are not at hand. By default the answers are those of the head as it is then. A fresh one answers almost
    evenly, and F tells which weights matter for the features, as a random projection shows them; after a
    :class:`~paretune.LinearProbe` it tells which matter for the task, and with ``head="pretrained"`` which matter for that
    of pretraining. What has no part in the answers yet has an F of 0 and is not held: in a bottleneck, what comes before
    ``up``, which begins at zero.

    Args:
        fisher: ``"true"``: for each example, the squared gradient of the log probability of a class that is drawn from the
            model's own answer. ``"exact"``: its expectation, which takes a backward pass for each class. ``"empirical"``:
            that of the given label, which is no Fisher information (Kunstner et al. 2019, https://arxiv.org/abs/1905.12558).
        head: whose answers: ``"task"``, of the head that training starts from, or ``"pretrained"``, of the one that the
            weights came with, which has no ``"empirical"`` information, as the labels are those of the task.
        examples: so many of the train split, drawn by the seed of the run, one at a time; all of them where it has fewer.
            Every process goes through them all, and a run that goes on does so again.

    Raises:
        ValueError: ``fisher`` or ``head`` is none of these, they do not go together, or ``examples`` is no whole number of
            at least 1.
    """

    _: KW_ONLY
    fisher: Literal["true", "exact", "empirical"] = "true"
    head: Literal["task", "pretrained"] = "task"
    examples: int = 1000

    def __post_init__(self) -> None:
        check_choices(self, "EWC: ")
        check_whole("EWC: examples", self.examples, 1)
        if self.head == "pretrained" and self.fisher == "empirical":
            raise ValueError(
                "EWC: fisher='empirical' takes the labels of the task, which head='pretrained' does not know; use 'true'"
            )

    @property
    def reaches_all(self) -> bool:
        """It does."""
        return True

    def check(self, model: Backbone, data: ImageData) -> None:
        """Raise ValueError if peft has wrapped layers of ``model``, or its weights came without the head that is asked for.

        See :class:`~paretune.strategies.Peft` and :func:`~paretune.backbones.heads.pretrained_head`.
        """
        check_shown(model, "EWC")
        if self.head == "pretrained":
            pretrained_head(model)

    def begin(self, model: Backbone, data: ImageData, seed: int) -> Term:
        """With the weights that ``model`` has, and their Fisher information."""
        anchored = Anchored(model, "EWC")
        return Penalty(partial(_penalty, anchored, self._information(anchored, model, data, seed)))

    def _information(
        self, anchored: Anchored, model: Backbone, data: ImageData, seed: int
    ) -> dict[str, Tensor]:
        """The mean over the examples of squared gradients, by the names of the tensors."""
        generator = np.random.default_rng([seed, len(data.train)])
        rows = generator.permutation(len(data.train))[: self.examples]
        device, head = model.mean.device, pretrained_head(model) if self.head == "pretrained" else None
        total = {name: torch.zeros_like(start, dtype=_dtype(start)) for name, start in anchored.start.items()}
        for row in rows.tolist():
            image, label = data.train[[row]]
            with (
                evaluation_mode(model),
                torch.enable_grad(),
                parametrize.cached(),
                entering_head(model) as seen,
            ):
                used = [(name, value) for name, values in anchored.in_use().items() for value in values]
                used = [(name, value) for name, value in used if value.requires_grad]
                logits = model(image.to(device))
                answer = (logits if head is None else head(seen[0])).log_softmax(1)[0]
                for drawn, weight in self._drawn(answer, int(label), generator).items():
                    gradients: dict[str, Tensor] = {}
                    for (name, _), gradient in zip(used, _gradients(answer[drawn], used), strict=True):
                        if gradient is not None:
                            gradients[name] = gradients[name] + gradient if name in gradients else gradient
                    for name, gradient in gradients.items():
                        total[name].add_(square(gradient), alpha=weight / len(rows))
        return total

    def _drawn(self, answer: Tensor, label: int, generator: np.random.Generator) -> dict[int, float]:
        """The classes to take gradients for, with their weights."""
        chances = answer.detach().double().exp().cpu().numpy()
        if self.fisher == "exact":
            return dict(enumerate(chances.tolist()))
        if self.fisher == "true":
            label = int(generator.choice(len(chances), p=chances / chances.sum()))
        return {label: 1.0}


def _gradients(output: Tensor, used: list[tuple[str, Tensor]]) -> tuple[Tensor | None, ...]:
    if not used:
        return ()
    return torch.autograd.grad(output, [value for _, value in used], retain_graph=True, allow_unused=True)


def _dtype(tensor: Tensor) -> torch.dtype:
    return tensor.dtype if tensor.element_size() >= 4 else torch.float32


def _penalty(anchored: Anchored, information: dict[str, Tensor]) -> Tensor:
    total = torch.zeros(())
    for name, weights in information.items():
        total = total + (weights / 2 * square(anchored.now(name) - anchored.start[name])).sum()
    return total
