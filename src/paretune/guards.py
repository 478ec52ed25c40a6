"""The three ways robust fine-tuning goes wrong without an error, recognised and named."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class TrainingDiverged(RuntimeError):
    """The loss or a gradient became NaN or infinite; the run's last checkpoint is from before."""


def check_finite(values: Sequence[Tensor], step: int, lr: float, cause: Exception | None = None) -> None:
    """Stop before the step that would spoil the weights.

    Args:
        values: the loss and the norm of the gradient, or the weights.
        step: for the message.
        lr: peak learning rate, for the message.
        cause: the error that a NaN led to, if any.

    Raises:
        TrainingDiverged: one of ``values`` is NaN or infinite.
    """
    if not all(bool(torch.isfinite(value).all()) for value in values):
        raise TrainingDiverged(
            f"NaN or infinity at step {step} with learning rate {lr:.2g}; the last checkpoint is unharmed. "
            f"Lower the learning rate, e.g. AdamW({lr / 3:.1g})"
        ) from cause


def catastrophic_overfitting(trained: float, robust: float, chance: float) -> str | None:
    """A warning if the model withstands the training attack but not the evaluation attack.

    Wong et al. 2020 (https://arxiv.org/abs/2001.03994, section 5.4) describe the sudden collapse.

    Args:
        trained: accuracy on the attacked training batches since the last evaluation.
        robust: accuracy under the evaluation attack.
        chance: accuracy of the best constant answer.
    """
    if trained > chance + 0.3 and robust < 0.25 * trained and robust < chance:
        return (
            f"catastrophic overfitting: {trained:.0%} right under the training attack, {robust:.0%} under the evaluation "
            "attack. Train with more attack steps (steps=7), a smaller step_size, or a smaller epsilon"
        )
    return None


def transfer_failure(clean: float, chance: float, examples: int, epsilon: float) -> str | None:
    """A warning if clean accuracy is no better than chance while the attack is on.

    Ngnawe et al. 2026 (https://arxiv.org/abs/2509.23325, section 3) call this suboptimal transfer.

    Args:
        clean: accuracy on clean images.
        chance: accuracy of the best constant answer.
        examples: number of images; sets how far above chance is clear.
        epsilon: strength of the attack now.
    """
    margin = 2 * math.sqrt(chance * (1 - chance) / examples)
    if epsilon > 0 and clean <= chance + margin:
        return (
            f"transfer failure: clean accuracy {clean:.0%} is chance level at epsilon {epsilon * 255:.3g}/255. "
            "Start the attack later (EpsilonSchedule.two_hinge()), lower epsilon, or train longer"
        )
    return None
