"""What all attacks share: the value that configures them, the way they ask the victim, and their checks."""

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from paretune._values import MOST, Value, check_choices, shown
from paretune.attacks.copy.engine import AttackCopy, attack_copy
from paretune.attacks.copy.steps import check_finite, input_gradient
from paretune.attacks.inputs import (
    check_classes,
    check_images,
    check_logits,
    isolated_randomness,
    predicted,
)
from paretune.attacks.streams import Streams
from paretune.attacks.threats import Threat
from paretune.attacks.waiting import extent


@dataclass(frozen=True)
class Attack(Value, ABC):
    """Base of the attacks: a frozen value that, called, turns images into adversarial ones.

    Args:
        threat: the norm and the radius, for example ``Linf(8/255)``.

    Raises:
        TypeError: ``threat`` is not a threat.
        ValueError: one of ``lengths`` is neither None nor a finite number above 0, or a field is none of its choices.
    """

    threat: Threat

    in_ball: ClassVar[bool] = True
    """Whether what the attack returns lies inside the ball; only then does it measure robustness."""

    portion: ClassVar[int] = 1
    """How many batches of a set :meth:`~paretune.attacks.Attack.on_set` is best given at once."""

    lengths: ClassVar[tuple[str, ...]] = ()
    """Fields in pixel units, which :meth:`with_epsilon` scales; None stays None."""

    def __post_init__(self) -> None:
        if not isinstance(self.threat, Threat):
            raise TypeError(
                f"{type(self).__name__}: threat must be a threat such as Linf(8/255) or L2(0.5), got {self.threat!r}"
            )
        check_choices(self, f"{type(self).__name__}: ")
        for name in self.lengths:
            length = getattr(self, name)
            if length is not None and not (length > 0 and math.isfinite(length)):
                raise ValueError(
                    f"{type(self).__name__}: {name} must be a finite number above 0, or None, got {length!r}"
                )

    def with_epsilon(self, epsilon: float) -> Self:
        """The same attack with another radius; fixed step sizes change in proportion."""
        factor = epsilon / self.threat.epsilon
        scaled = {name: getattr(self, name) for name in self.lengths}
        scaled = {name: value * factor for name, value in scaled.items() if value is not None}
        return replace(self, threat=self.threat.with_epsilon(epsilon), **scaled)

    def on(self, classes: int) -> Self:
        """The attack as it runs on a model with this many classes: itself, unless it has variants."""
        return self

    def __call__(
        self,
        model: nn.Module | AttackCopy,
        images: Tensor,
        labels: Tensor,
        *,
        seed: int = 0,
        places: Tensor | None = None,
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
            seed: seeds all randomness. The same seed gives the same result.
            places: (batch,) whole numbers: where the images are in a larger set, of which these are a part; None for
                0, 1, 2, … What an image draws depends on ``seed`` and on its place only, so neither the batch size nor
                other images change its answer, up to the rounding of the model.

        Returns:
            Float32 images of the same shape, in [0, 1] and inside the ball.

        Raises:
            TypeError: an argument is not what it must be.
            ValueError: images or labels break the rules above, or the model returns NaN, an infinite largest logit or
                something else than (batch, classes), has no gradient or has too few classes. Nothing is changed then.
        """
        return self._attacked(model, images, labels, seed, places)

    def _attacked(
        self,
        model: nn.Module | AttackCopy,
        images: Tensor,
        labels: Tensor,
        seed: int,
        places: Tensor | None,
        targets: Tensor | None = None,
        reference: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        with attacking(model, images, labels, seed, places, targets, reference, start) as call:
            return self.perturb(call) if call.images.numel() else call.images.clone()

    def on_set(
        self,
        model: nn.Module | AttackCopy,
        images: Tensor,
        labels: Tensor,
        *,
        seed: int = 0,
        places: Tensor | None = None,
        batch_size: int = 128,
        state: Path | None = None,
        progress: Callable[[float, str], None] = lambda _fraction, _note: None,
    ) -> Tensor:
        """Attack a set batch by batch; each image's answer is that of one call on all.

        Args:
            model: see :meth:`__call__`, as for the other arguments.
            images: (images, channels, height, width).
            labels: (images,).
            seed: of the call.
            places: (images,).
            batch_size: images at once.
            state: a directory that a long attack keeps finished batches in, to continue there; others need none.
            progress: called with the fraction that is done, and what is being done.
        """
        if places is None:
            places = torch.arange(len(images))
        batches = [torch.split(tensor, batch_size) for tensor in (images, labels, places)]
        answers = []
        for number, (some, right, where) in enumerate(zip(*batches, strict=True)):
            progress(number / len(batches[0]), repr(self))
            answers.append(self(model, some, right, seed=seed, places=where))
        return torch.cat(answers)

    def for_training(self) -> "Attack":
        """The attack in the form to train with, in which every image takes every step of a single run: itself, unless it
        has several forms.

        Raises:
            ValueError: it stops at the first success.
        """
        return self

    def passes(self, classes: int) -> int:
        """About how many forward and backward passes an image takes that is never solved: one each, unless there are
        steps.

        Args:
            classes: of the model.
        """
        return 2

    @abstractmethod
    def perturb(self, call: "Call") -> Tensor:
        """The adversarial images of one call, like ``call.images``, which are not empty."""

    def check_counts(self, *names: str) -> None:
        """Raise ValueError for a field that must be a whole number from 1 to MOST and is not."""
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST:
                raise ValueError(
                    f"{type(self).__name__}: {name} must be a whole number of at least 1, got {shown(value)}; "
                    f"at most {MOST}"
                )


class Oracle:
    """The victim as attacks ask it: each answer is checked, and each success verified in float32.

    Args:
        victim: the attack copy.
        highest_class: largest label or target; the victim must have more classes.
    """

    def __init__(self, victim: AttackCopy, highest_class: int) -> None:
        self.victim = victim
        self.highest_class = highest_class
        self._finite: list[Tensor] = []
        self.forwards = 0
        """Images that went through the victim."""
        self.backwards = 0
        """Images whose gradient was computed."""
        self.zero_gradients = 0
        """Images whose first gradient of a run was exactly zero; see :meth:`count_zeros`."""
        self.first_gradients = 0
        """Images whose first gradient was looked at."""
        self.on_pass: Callable[[], None] = lambda: None
        """Called after each pass, for progress."""

    def logits(self, images: Tensor) -> Tensor:
        """(batch, classes) in the precision of the search."""
        return self._checked(self.victim.look(images), len(images))

    def exact(self, images: Tensor) -> Tensor:
        """(batch, classes) computed in float32, without a gradient."""
        return self._checked(self.victim.exact(images), len(images))

    def classes(self, logits: Tensor) -> Tensor:
        """(batch,) predicted classes; see :func:`~paretune.attacks.inputs.predicted`."""
        return predicted(logits)

    def hits(
        self, images: Tensor, logits: Tensor, goals: Tensor, among: Tensor, *, targeted: bool = False
    ) -> Tensor:
        """Mask of the images that are misclassified in float32, or classified as their goals if ``targeted``.

        Args:
            images: (batch, ...).
            logits: what the search saw for them; only what it claims is verified. In float32 the claim is the proof.
            goals: (batch,) the classes to leave, or to reach.
            among: (batch,) mask of the images that count.
            targeted: which of the two.
        """
        claimed = among & ((self.classes(logits) == goals) == targeted)
        if self.victim.precision == "fp32":
            return claimed
        rows = claimed.nonzero().flatten()
        if not len(rows):
            return claimed
        return claimed.index_put((rows,), (self.classes(self.exact(images[rows])) == goals[rows]) == targeted)

    def gradient(self, losses: Tensor, images: Tensor, *, retain_graph: bool = False) -> Tensor:
        """The gradient of each loss with respect to its image; like ``images``, which ``losses`` came from."""
        # The sum, so that the gradient of an image does not depend on the size of its batch.
        gradient = input_gradient(losses.sum(), images, retain_graph=retain_graph)
        # The loss too: where NaN comes from masking, its gradient is zero.
        self._finite.append(gradient.isfinite().all() & ~losses.isnan().any())
        self.backwards += len(images)
        self.on_pass()
        return gradient

    def count_zeros(self, gradient: Tensor) -> None:
        """Note how many images have a zero gradient at the start of a run, for the sanity warnings."""
        self.zero_gradients += int((gradient.flatten(1) == 0).all(dim=1).sum())
        self.first_gradients += len(gradient)

    def finish(self) -> None:
        """Raise ValueError if a gradient was not finite, or a loss was NaN; see :func:`check_finite`."""
        if self._finite:
            check_finite(self._finite)
        self._finite.clear()

    def _checked(self, logits: Tensor, batch: int) -> Tensor:
        check_logits(logits, batch, self.highest_class)
        self.forwards += batch
        self.on_pass()
        return logits


@dataclass(frozen=True, eq=False)
class Call:
    """The checked arguments of one call.

    Args:
        oracle: the victim.
        images: (batch, ...) float32, detached.
        goals: (batch,) int64: the classes to leave, or to reach if ``targeted``.
        targeted: which of the two.
        streams: the random numbers of each image.
        reference: (batch, outputs) what a loss without labels compares with; None is what the victim returns for ``images``.
        start: like ``images``: where to start. An image with NaN starts as all do where this is None.
    """

    oracle: Oracle
    images: Tensor
    goals: Tensor
    targeted: bool
    streams: Streams
    reference: Tensor | None = None
    start: Tensor | None = None


@contextlib.contextmanager
def attacking(
    model: nn.Module | AttackCopy,
    images: Tensor,
    labels: Tensor,
    seed: int,
    places: Tensor | None = None,
    targets: Tensor | None = None,
    reference: Tensor | None = None,
    start: Tensor | None = None,
) -> Iterator[Call]:
    """Check what an attack was called with, and set up gradients, precision and randomness around it.

    Raises:
        TypeError, ValueError: as :meth:`Attack.__call__` says.
    """
    victim = attack_copy(model)
    check_images(images, victim.device)
    goals = check_classes("labels", labels, images)
    _, highest_class = extent(labels)
    if targets is not None:
        goals = check_classes("targets", targets, images)
        highest_class = max(highest_class, extent(targets)[1])
    if reference is not None:
        if reference.ndim != 2 or len(reference) != len(images) or reference.device != images.device:
            raise ValueError(
                f"reference must be ({len(images)}, outputs) on {images.device}, got shape {tuple(reference.shape)} on "
                f"{reference.device}"
            )
        reference, highest_class = reference.detach().float(), 0  # the outputs need be no classes
    if start is not None and (start.shape != images.shape or start.device != images.device):
        raise ValueError(
            f"start must be like images, {tuple(images.shape)} on {images.device}, got {tuple(start.shape)} on "
            f"{start.device}"
        )
    oracle = Oracle(victim, highest_class)
    if places is None:
        places = torch.arange(len(images))
    elif places.shape != images.shape[:1] or places.is_floating_point():
        raise ValueError(
            f"places must be {len(images)} whole numbers, one for each image, got {places.dtype} of shape "
            f"{tuple(places.shape)}"
        )
    streams = Streams(seed, places.cpu())
    with (
        victim.gate.using(),
        torch.inference_mode(False),
        torch.enable_grad(),
        # Also here, because the backward pass computes in the precision of where it is called.
        torch.autocast(images.device.type, enabled=False),
        # The global random state belongs to all threads, so it is borrowed only where it is drawn from. By the first place,
        # so that the batches of a set draw different numbers.
        isolated_randomness(seed + int(places[:1].sum()), images.device)
        if victim.draws(images)
        else contextlib.nullcontext(),
    ):
        # A clone, because autograd keeps it, which it cannot if it was made in inference mode.
        try:
            images = images.detach().float()
            yield Call(oracle, images, goals.clone(), targets is not None, streams, reference, start)
        except RuntimeError as error:
            if "use_reentrant" not in str(error):
                raise
            raise ValueError(
                "the model checkpoints activations in the reentrant way, which has no gradient with respect to its images; "
                "use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
            ) from error
    oracle.finish()
