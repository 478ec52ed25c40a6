"""k steps of projected gradient ascent: k forward and backward passes, and as little else as there can be.

For Linf and L2 the gradient is taken at the input of the network, behind the normalisation and the cast, so that all
that follows it (step, projection, normalisation, cast) is one kernel on CUDA and a few passes elsewhere. The image, its
perturbation and the loss stay in float32.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paretune.attacks.copy.options import Engine
from paretune.attacks.copy.twin import Twin
from paretune.attacks.inputs import check_logits
from paretune.attacks.threats import FUSED, Linf, Threat
from paretune.attacks.waiting import require
from paretune.kernels import Step, pgd_step, reference

logger = logging.getLogger(__name__)

MOST_SHAPES = 4  # of batches that are compiled, because compiling one takes as long as hundreds of steps


@dataclass(frozen=True, eq=False)
class Ascent:
    """What the steps of one run share.

    Args:
        threat: norm and radius.
        images: the clean images, float32.
        goals: (batch,) int64, the classes to leave, or to reach if ``targeted``.
        step_size: in pixel units; a tensor where it may change between replays of a graph.
        epsilon: radius, likewise; the threat's.
        targeted: lower the cross-entropy to ``goals`` instead.
        highest_class: the largest of ``goals``, or more.
    """

    threat: Threat
    images: Tensor
    goals: Tensor
    step_size: float | Tensor
    epsilon: float | Tensor
    targeted: bool
    highest_class: int

    def __call__(self, twin: Twin, images_adv: Tensor, steps: int) -> Tensor:
        """``images_adv`` after ``steps`` steps.

        Raises:
            ValueError: the model has too few classes, no gradient, or one that is not finite.
        """
        images_adv, finite = self.climb(twin, images_adv, steps)
        check_finite(finite)
        return images_adv

    def climb(self, twin: Twin, images_adv: Tensor, steps: int) -> tuple[Tensor, list[Tensor]]:
        """The steps, without a look at any value: the images, and for each gradient whether it is finite."""
        behind_entry = type(self.threat) in FUSED and images_adv.device.type in ("cpu", "cuda")
        bounds = self.bounds() if behind_entry else ()
        entered = twin.enter(images_adv) if behind_entry else images_adv
        # The kernel's results follow the layout.
        images = twin.laid_out(self.images) if self._takes_kernel else self.images
        finite = []
        for _ in range(steps):
            leaf = (entered if behind_entry else images_adv).detach().requires_grad_()
            logits = twin.logits(leaf if behind_entry else twin.enter(leaf))
            check_logits(logits, len(leaf), self.highest_class)
            loss = loss_of(logits, self.goals, self.targeted)
            gradient = input_gradient(loss, leaf)
            finite.append(is_finite(gradient, loss))
            if not behind_entry:
                moved = self.threat.step(images_adv.detach(), gradient, float(self.step_size))
                images_adv = self.threat.project(moved, self.images)
            elif self._takes_kernel:
                images_adv, entered = self._kernel(twin, images, gradient, images_adv)
            else:
                images_adv = tail(twin, images, gradient, images_adv, bounds, self.step_size)
                entered = twin.enter(images_adv)
        return images_adv, finite

    def bounds(self) -> tuple[Tensor, ...]:
        """Lowest and highest value of each pixel for Linf, which stay the same for all steps; the radius for L2."""
        if isinstance(self.threat, Linf):
            return reference.linf_box(self.images, self.epsilon)
        return (_amount(self.epsilon, self.images),)

    @property
    def _takes_kernel(self) -> bool:
        return self.images.is_cuda

    def _kernel(
        self, twin: Twin, images: Tensor, gradient: Tensor, images_adv: Tensor
    ) -> tuple[Tensor, Tensor]:
        mean, std = twin.normalisation or (None, None)
        out_dtype = None if mean is None and twin.dtype is torch.float32 else twin.dtype
        norm = FUSED[type(self.threat)]
        step = Step(gradient, images, images_adv, norm, self.step_size, self.epsilon, mean, std, out_dtype)
        return pgd_step(step)


@dataclass(eq=False)
class CompiledSteps:
    """The steps of an :class:`Ascent` on ``twin``, each of them one compiled graph.

    The twin's tensors are inputs of the graph, so refreshing them compiles nothing again; so are the step size and the
    bounds, which follow an epsilon schedule. Each new shape of a batch is compiled, up to four; others run as they are,
    and so does what cannot be compiled.
    """

    twin: Twin
    # Of the shapes; None if not compiled.
    _classes: dict[torch.Size, int | None] = field(default_factory=dict)
    _step: Callable[..., tuple[Tensor, Tensor]] | None = None

    @property
    def engine(self) -> Engine:
        """What has taken the steps so far."""
        return "compiled" if any(self._classes.values()) else "eager"

    def __call__(self, ascent: Ascent, images_adv: Tensor, steps: int) -> Tensor:
        """As :meth:`Ascent.__call__`."""
        shape = images_adv.shape
        if type(ascent.threat) not in FUSED or self._classes.get(shape, 1) is None:
            return ascent(self.twin, images_adv, steps)
        if shape in self._classes:
            blank = torch.empty(len(images_adv), self._classes[shape] or 0, device="meta")
            check_logits(blank, len(images_adv), ascent.highest_class)
            return self._steps(ascent, images_adv, steps)
        if len(self._classes) == MOST_SHAPES:
            logger.info("attack copy: batches of shape %s are not compiled", tuple(shape))
            return ascent(self.twin, images_adv, steps)
        # One step as it is first, for the errors of the model: a compiled one cannot tell them.
        ascent(self.twin, images_adv, 1)
        with torch.no_grad():
            classes = self.twin(images_adv[:1]).shape[1]
        try:
            moved = self._steps(ascent, images_adv, steps)
        except Exception as error:  # whatever a compiler raises, the steps as they are need none
            logger.warning("attack copy: eager steps; they cannot be compiled (%s)", in_short(error))
            self._classes[shape] = None
            return ascent(self.twin, images_adv, steps)
        self._classes[shape] = classes
        return moved

    def _steps(self, ascent: Ascent, images_adv: Tensor, steps: int) -> Tensor:
        if self._step is None:
            self._step = torch.compile(self._one_step, fullgraph=True, dynamic=False)
        step_size = _amount(ascent.step_size, images_adv)
        bounds, finite = ascent.bounds(), []
        with torch.no_grad():
            images_adv = images_adv.detach()
            for _ in range(steps):
                images_adv, flag = self._step(
                    ascent.images, images_adv, ascent.goals, bounds, step_size, ascent.targeted
                )
                finite.append(flag)
        check_finite(finite)
        return images_adv

    def _one_step(
        self,
        images: Tensor,
        images_adv: Tensor,
        goals: Tensor,
        bounds: tuple[Tensor, ...],
        step_size: Tensor,
        targeted: bool,
    ) -> tuple[Tensor, Tensor]:
        def loss(entered: Tensor) -> Tensor:
            return loss_of(self.twin.logits(entered), goals, targeted)

        gradient: Any
        gradient, value = torch.func.grad_and_value(loss)(self.twin.enter(images_adv))
        return tail(self.twin, images, gradient, images_adv, bounds, step_size), is_finite(gradient, value)


def input_gradient(loss: Tensor, leaf: Tensor, *, retain_graph: bool = False) -> Tensor:
    """Gradient of ``loss`` with respect to ``leaf``.

    Raises:
        ValueError: there is none.
    """
    gradient = None
    if loss.requires_grad:
        (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True, retain_graph=retain_graph)
    if gradient is None:
        raise ValueError(
            "the model has no gradient with respect to its images: something inside it is not "
            "differentiable or detaches (argmax, rounding, .detach(), torch.no_grad)"
        )
    return gradient


def loss_of(logits: Tensor, goals: Tensor, targeted: bool) -> Tensor:
    """What the steps raise: summed, so that the gradient of an image does not depend on the size of its batch."""
    loss = F.cross_entropy(logits, goals, reduction="sum")
    return -loss if targeted else loss


def tail(
    twin: Twin,
    images: Tensor,
    gradient: Tensor,
    images_adv: Tensor,
    bounds: tuple[Tensor, ...],
    step_size: float | Tensor,
) -> Tensor:
    """The next adversarial images: within a box (two bounds, Linf), or within a radius (one bound, L2)."""
    images_adv = images_adv.detach()
    if len(bounds) == 2:
        return reference.linf_move(gradient, images_adv, *bounds, step_size)
    std = twin.normalisation[1] if twin.normalisation else None
    return reference.l2_step(gradient, images, images_adv, step_size, bounds[0], std)


def is_finite(gradient: Tensor, loss: Tensor) -> Tensor:
    """Whether no entry is NaN or infinite, and the loss is a number, as a tensor, so that nothing waits for it.

    The loss too: where NaN comes from masking, its gradient is zero.
    """
    low, high = torch.aminmax(gradient)  # one pass, and NaN passes through it
    return low.isfinite() & high.isfinite() & ~loss.detach().isnan()


def check_finite(finite: list[Tensor]) -> None:
    """Raise ValueError if one of the flags is False, through :func:`~paretune.attacks.waiting.require`; once for all steps,
    because a look waits for the device."""
    message = (
        "the model's loss or its gradient is NaN or infinite for some images, so they cannot be attacked; a loss 'dlr' is "
        "where fewer than 3 logits, and 'dlr-targeted' where fewer than 4, are above minus infinity"
    )
    require(torch.stack(finite).all(), lambda: ValueError(message))


def _amount(amount: float | Tensor, like: Tensor) -> Tensor:
    """On the device of ``like``, without the wait for it that a copy of a number would be."""
    return amount if isinstance(amount, Tensor) else torch.full((), amount, device=like.device)


def in_short(error: Exception) -> str:
    """One line of an error that is put in the log."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:300]}"
