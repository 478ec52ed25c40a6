"""Signs that a robust accuracy is too good to be true.

A model whose gradients are useless resists gradient attacks without being robust (Athalye et al. 2018, "Obfuscated
Gradients Give a False Sense of Security", https://arxiv.org/abs/1802.00420, section 3.1; Carlini et al. 2019, "On
Evaluating Adversarial Robustness", https://arxiv.org/abs/1902.06705). Each rule takes what was measured and returns a
warning that names the sign and the remedy, or None. The caller logs it.
"""

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paretune.attacks.base import Oracle, attacking
from paretune.attacks.copy.engine import AttackCopy
from paretune.attacks.pgd import PGD
from paretune.attacks.search import Examples
from paretune.attacks.square import Square
from paretune.attacks.threats import Threat


def zero_gradients(zero: int, images: int) -> str | None:
    """A warning if the gradient vanishes for more than one image in twenty.

    Args:
        zero: images whose gradient is exactly zero in every pixel.
        images: images looked at.
    """
    if zero > 0.05 * images:
        return (
            f"zero gradients for {zero} of {images} images: gradient attacks cannot climb there, so robust accuracy "
            "may be far too high. Usual causes: logits scaled until the softmax saturates (use loss='dlr'), or rounding "
            "inside the model; compare with Square"
        )
    return None


def random_forward(first: Tensor, second: Tensor) -> str | None:
    """A warning if two passes of the same images differ by more than rounding.

    Args:
        first: logits (batch, classes).
        second: logits of the same images again.
    """
    scale = first.norm(dim=1) + 1e-10
    difference = float(((first - second).norm(dim=1) / scale).max()) if len(first) else 0.0
    if difference > 1e-4:
        return (
            f"the forward pass is random: the same images give logits that differ by {difference:.1%}. Average the "
            "gradients over passes: AutoAttack(version='rand') or APGD(eot=20)"
        )
    return None


def black_box_wins(solved: int, robust: int, images: int) -> str | None:
    """A warning if an attack without gradients solves images that all attacks with gradients left.

    Args:
        solved: images that Square solved after the others had failed.
        robust: images that the others had left.
        images: images of the set.
    """
    if solved >= 2 and solved > 0.002 * images:
        return (
            f"black-box beats white-box: Square fooled {solved} of the {robust} images that gradient attacks left. "
            "Gradients are probably masked; attack with more queries and restarts, or write an attack for this model"
        )
    return None


def not_monotone(robust: Mapping[float, int], images: int) -> str | None:
    """A warning if more images survive a larger epsilon.

    Args:
        robust: for each epsilon, how many of the same images survive the same attack.
        images: how many there are.
    """
    rows = sorted(robust.items())
    for (epsilon, survive), (larger, survive_larger) in itertools.pairwise(rows):
        if survive_larger - survive > max(1, 0.02 * images):
            return (
                f"robust accuracy is higher at a larger epsilon: {survive_larger / images:.1%} at {larger:.4g}, "
                f"{survive / images:.1%} at {epsilon:.4g}. The attack fails rather than the model resists; use more "
                "steps and restarts, or APGD"
            )
    return None


def loss_does_not_grow(few: float, many: float, clean: float) -> str | None:
    """A warning if more steps do not raise the loss.

    Args:
        few: mean cross-entropy of the images after one step.
        many: after many steps.
        clean: of the clean images.
    """
    if not math.isfinite(many) or many <= few or many <= clean:
        return (
            f"the loss does not grow with attack steps: {clean:.3g} clean, {few:.3g} after one step, {many:.3g} after "
            "many. The gradient does not lead uphill; check for rounding, noise or clipping inside the model"
        )
    return None


def masking_findings(
    model: nn.Module | AttackCopy,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    *,
    steps: int = 20,
    queries: int = 200,
    seed: int = 0,
) -> tuple[str, ...]:
    """Look for masked gradients on a few images, in about ``6 · steps + queries`` forward passes.

    Images that are misclassified already are left out. One batch of fifty to some hundreds will do.

    Example:
        >>> from paretune.attacks import Linf, masking_findings
        >>> masking_findings(model, images, labels, Linf(4 / 255))  # doctest: +SKIP
        ()

    Args:
        model: a classifier of images in [0, 1], or its attack copy.
        images: (batch, channels, height, width) in [0, 1].
        labels: true classes (batch,).
        threat: the norm and radius of the evaluation.
        steps: gradient steps of the attacks compared.
        queries: of the black-box attack.
        seed: seeds the attacks.

    Returns:
        A warning for each sign found; empty for a sound model.
    """
    findings: list[str | None] = []
    with attacking(model, images, labels, seed) as call:
        if call.images.numel() == 0:
            return ()
        oracle = call.oracle
        clean = oracle.exact(call.images)
        rows = (oracle.classes(clean) == call.goals).nonzero().flatten()
        if not len(rows):
            return ()
        findings.append(random_forward(clean, oracle.exact(call.images)))
        batch = Examples(call.images, call.goals, clean, call.streams).take(rows)
        points = batch.images.clone().requires_grad_()
        gradient = oracle.gradient(_losses(oracle.logits(points), batch.labels), points)
        oracle.count_zeros(gradient)
        findings.append(zero_gradients(oracle.zero_gradients, len(rows)))

    victim = oracle.victim
    attack = PGD(threat, steps=steps)
    single = PGD(threat, steps=1, step_size=threat.epsilon, random_start=False, keep="last")
    many = PGD(threat, steps=steps, random_start=False, keep="last")
    few_loss, many_loss = (
        _mean_loss(oracle, probe(victim, batch.images, batch.labels, seed=seed), batch.labels)
        for probe in (single, many)
    )
    findings.append(loss_does_not_grow(few_loss, many_loss, float(_losses(batch.clean, batch.labels).mean())))

    survive: dict[float, int] = {}
    for epsilon in (threat.epsilon, 2 * threat.epsilon):
        try:
            scaled = attack.with_epsilon(epsilon)
        except ValueError:  # twice the radius is more than the threat allows
            continue
        attacked = scaled(victim, batch.images, batch.labels, seed=seed)
        right = oracle.classes(oracle.exact(attacked)) == batch.labels
        survive[epsilon] = int(right.sum())
        if epsilon == threat.epsilon:
            left = right.nonzero().flatten()
    findings.append(not_monotone(survive, len(rows)))
    if batch.images.ndim == 4 and len(left):
        square = Square(threat, queries=queries, schedule=queries)
        attacked = square(victim, batch.images[left], batch.labels[left], seed=seed)
        solved = int((oracle.classes(oracle.exact(attacked)) != batch.labels[left]).sum())
        findings.append(black_box_wins(solved, len(left), len(rows)))
    return tuple(finding for finding in findings if finding)


def vanishing_gradients(
    model: nn.Module | AttackCopy, images: Tensor, labels: Tensor, *, seed: int = 0
) -> tuple[int, int]:
    """What :func:`zero_gradients` takes, from three passes: images with a zero gradient or none, and images looked at.

    These are the ones that ``model`` has right; see :func:`~paretune.attacks.masking_findings` for the arguments.
    """
    with attacking(model, images, labels, seed) as call:
        if call.images.numel() == 0:
            return 0, 0
        right = call.oracle.classes(call.oracle.exact(call.images)) == call.goals
        if not right.any():
            return 0, 0
        points = call.images[right].requires_grad_()
        losses, gradient = _losses(call.oracle.logits(points), call.goals[right]), None
        if losses.requires_grad:
            (gradient,) = torch.autograd.grad(losses.sum(), points, allow_unused=True)
        zero = len(points) if gradient is None else int((gradient.flatten(1) == 0).all(1).sum())
        return zero, len(points)


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def _mean_loss(oracle: Oracle, images: Tensor, labels: Tensor) -> float:
    return float(_losses(oracle.exact(images), labels).mean())
