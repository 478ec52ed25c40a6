"""Projected gradient descent (Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial
Attacks", https://arxiv.org/abs/1706.06083): climb the loss by steps of fixed length, and come back into the
ball after each.
"""

import math
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paretune._values import Value
from paretune.attacks.engine import AttackCopy, attack_copy
from paretune.attacks.inputs import check_classes, check_images, check_logits, isolated_randomness
from paretune.attacks.threats import Threat


@dataclass(frozen=True)
class PGD(Value):
    """Maximise the cross-entropy inside a threat's ball; as a function, from images to adversarial images.

    Example:
        >>> from paretune import PGD, Linf
        >>> attack = PGD(Linf(4 / 255), steps=20)
        >>> images_adv = attack(model, images, labels, seed=0)  # doctest: +SKIP

    Args:
        threat: the norm and the radius, for example ``Linf(8/255)``.
        steps: gradient steps, at least 1.
        step_size: length of a step in pixel units, in the threat's norm. None takes 2.5 · epsilon / steps,
            with which the border can be reached from every start and walked along after (Madry et al., figure
            6).
        restarts: runs from different random starts; each reruns only the images that no earlier run has
            solved.
        random_start: start at a random point of the ball (Madry et al., section 3.1), not at the image
            itself.
        targeted: minimise the cross-entropy to ``targets`` instead; solved is what is classified as its
            target.
        keep: ``"best"`` returns for each image the first adversarial point met, else the last point of the
            run with the highest loss; a solved image leaves the batch. ``"last"`` returns the last point of
            the single run, with exactly ``steps`` forward and backward passes and nothing else: for training.

    Raises:
        TypeError: ``threat`` is not a threat.
        ValueError: a field is out of range, or ``restarts`` would repeat the same run.
    """

    threat: Threat
    _: KW_ONLY
    steps: int = 10
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    targeted: bool = False
    keep: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        if not isinstance(self.threat, Threat):
            raise TypeError(
                f"PGD: threat must be a threat such as Linf(8/255) or L2(0.5), got {self.threat!r}"
            )
        for name in ("steps", "restarts"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"PGD: {name} must be a whole number of at least 1, got {value!r}")
        if self.step_size is not None and not (self.step_size > 0 and math.isfinite(self.step_size)):
            raise ValueError(
                f"PGD: step_size must be a finite number above 0, or None, got {self.step_size!r}"
            )
        if self.keep not in ("best", "last"):
            raise ValueError(f"PGD: keep must be 'best' or 'last', got {self.keep!r}")
        if self.restarts > 1 and not self.random_start:
            raise ValueError(
                f"PGD: restarts={self.restarts} needs random_start=True, or all runs are the same"
            )
        if self.restarts > 1 and self.keep == "last":
            raise ValueError(f"PGD: restarts={self.restarts} needs keep='best'; keep='last' compares nothing")

    @property
    def effective_step_size(self) -> float:
        """Length of a step in pixel units."""
        return 2.5 * self.threat.epsilon / self.steps if self.step_size is None else self.step_size

    def with_epsilon(self, epsilon: float) -> Self:
        """The same attack with another radius; a fixed ``step_size`` changes in proportion."""
        step_size = self.step_size
        if step_size is not None:
            step_size *= epsilon / self.threat.epsilon
        return replace(self, threat=self.threat.with_epsilon(epsilon), step_size=step_size)

    def __call__(
        self,
        model: nn.Module | AttackCopy,
        images: Tensor,
        labels: Tensor,
        *,
        seed: int = 0,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Attack ``images``; the model, the arguments and the global random state stay as they are.

        A plain model is attacked in evaluation mode, whatever mode it is in, through a copy made for this
        call; for many batches make the copy once with :func:`~paretune.attacks.attack_copy`. Works under
        ``torch.no_grad`` and ``torch.inference_mode`` too.

        Args:
            model: a classifier that takes images in [0, 1] and returns logits (batch, classes), or an object
                with ``.logits``; or an :class:`~paretune.attacks.AttackCopy`.
            images: (batch, channels, height, width) in [0, 1], floating point; the batch may be empty.
            labels: true classes (batch,), integers.
            seed: seeds the random starts. The same seed gives the same result.
            targets: for ``targeted``, the wanted classes (batch,), integers.

        Returns:
            Float32 images of the same shape, inside the ball and [0, 1].

        Raises:
            TypeError: an argument is not what it must be.
            ValueError: images, labels or targets break the rules above, or the model returns NaN, has no
                gradient or has too few classes. Nothing is changed then.
        """
        if self.targeted != (targets is not None):
            wanted = (
                "needs targets=" if self.targeted else "does not take targets; use PGD(..., targeted=True)"
            )
            raise ValueError(f"PGD(targeted={self.targeted}) {wanted}")
        victim = attack_copy(model)
        check_images(images, victim.device)
        goals = check_classes("labels", labels, images)
        highest_class = int(goals.max()) if len(images) else 0
        if targets is not None:
            goals = check_classes("targets", targets, images)
            highest_class = max(highest_class, int(goals.max()) if len(images) else 0)
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            # Also here, because the backward pass computes in the precision of where it is called.
            torch.autocast(images.device.type, enabled=False),
            isolated_randomness(seed, images.device) as generator,
        ):
            images = images.detach().float()
            if images.numel() == 0:
                return images.clone()
            goals = goals.clone()  # autograd keeps them, which it cannot if they were made in inference mode
            run = _Run(self, victim, highest_class)
            result = (
                run.last(images, goals, generator)
                if self.keep == "last"
                else run.best(images, goals, generator)
            )
        run.check_gradients()
        return result


@dataclass(frozen=True)
class _Run:
    """One call of an attack."""

    attack: PGD
    victim: AttackCopy
    highest_class: int
    finite: list[Tensor] = field(default_factory=list)  # of each gradient, whether it is

    def last(self, images: Tensor, goals: Tensor, generator: torch.Generator) -> Tensor:
        images_adv = self.start(images, generator)
        for _ in range(self.attack.steps):
            images_adv.requires_grad_()
            gradient = self.gradient(self.losses(self.logits(images_adv), goals), images_adv)
            images_adv = self.advance(images_adv, gradient, images)
        return images_adv

    def best(self, images: Tensor, goals: Tensor, generator: torch.Generator) -> Tensor:
        result = images.clone()
        highest = torch.full((len(images),), -math.inf, device=images.device)
        unsolved = torch.arange(len(images), device=images.device)
        for _ in range(self.attack.restarts):
            # Drawn for every image, so that an image's start does not depend on which others are solved.
            images_adv, rows = self.start(images, generator)[unsolved], unsolved
            for _ in range(self.attack.steps):
                images_adv.requires_grad_()
                logits = self.logits(images_adv)
                solved = self.solved(logits, goals[rows])
                result[rows[solved]] = images_adv.detach()[solved]
                active = ~solved
                rows = rows[active]
                if not len(rows):
                    break
                gradient = self.gradient(self.losses(logits[active], goals[rows]), images_adv)
                images_adv = self.advance(images_adv[active], gradient[active], images[rows])
            if len(rows):
                with torch.no_grad():
                    logits = self.logits(images_adv)
                solved, losses = self.solved(logits, goals[rows]), self.losses(logits, goals[rows])
                better = solved | (losses > highest[rows])
                result[rows[better]] = images_adv[better]
                highest[rows] = torch.maximum(highest[rows], losses)
                rows = rows[~solved]
            if not len(rows):
                break
            unsolved = rows
        return result

    def start(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return (
            self.attack.threat.random_start(images, generator) if self.attack.random_start else images.clone()
        )

    def advance(self, images_adv: Tensor, gradient: Tensor, images: Tensor) -> Tensor:
        threat = self.attack.threat
        return threat.project(
            threat.step(images_adv.detach(), gradient, self.attack.effective_step_size), images
        )

    def logits(self, images_adv: Tensor) -> Tensor:
        logits = self.victim(images_adv)
        check_logits(logits, len(images_adv), self.highest_class)
        return logits

    def losses(self, logits: Tensor, goals: Tensor) -> Tensor:
        """What the attack maximises, for each image."""
        losses = F.cross_entropy(logits, goals, reduction="none")
        return -losses if self.attack.targeted else losses

    def solved(self, logits: Tensor, goals: Tensor) -> Tensor:
        if logits.isnan().any():
            raise ValueError("the model returned NaN for some images inside the ball")
        predicted = logits.detach().argmax(dim=1)
        return predicted == goals if self.attack.targeted else predicted != goals

    def gradient(self, losses: Tensor, images_adv: Tensor) -> Tensor:
        # The sum, so that the gradient of an image does not depend on the size of its batch.
        gradient = None
        if losses.requires_grad:
            (gradient,) = torch.autograd.grad(losses.sum(), images_adv, allow_unused=True)
        if gradient is None:
            raise ValueError(
                "the model has no gradient with respect to its images: something inside it is not "
                "differentiable or detaches (argmax, rounding, .detach(), torch.no_grad)"
            )
        self.finite.append(gradient.isfinite().all())
        return gradient

    def check_gradients(self) -> None:
        # Once at the end, because each look makes an accelerator wait.
        if self.finite and not torch.stack(self.finite).all():
            raise ValueError(
                "the model's gradient is NaN or infinite for some images, so they cannot be attacked"
            )
