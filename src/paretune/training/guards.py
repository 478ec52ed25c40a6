"""The ways robust fine-tuning goes wrong without an error, recognised and named."""

import copy
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from paretune.backbones.backbone import Backbone, digest
from paretune.backbones.modes import frozen_batch_norms, modes_kept
from paretune.strategies.mechanics.adapting import require_adaptation, trainable_parameters
from paretune.training.schedules import EpsilonSchedule

CHANCES = 10  # passes in which a layer that training skips by chance may run


class TrainingDiverged(RuntimeError):
    """The loss or a gradient became NaN or infinite; the run's last checkpoint is from before."""


def check_divergence(
    values: Sequence[Tensor],
    step: int,
    lr: float,
    cause: Exception | None = None,
    findings: Iterable[str] = (),
) -> None:
    """Stop before the step that would spoil the weights.

    Args:
        values: the loss and the norm of the gradient, or the weights.
        step: for the message.
        lr: peak learning rate, for the message.
        cause: the error that a NaN led to, if any.
        findings: what has been noticed before; of these the message repeats what may be the reason.

    Raises:
        TrainingDiverged: one of ``values`` is NaN or infinite.
    """
    if not all(bool(torch.isfinite(value).all()) for value in values):
        noticed = "".join(f". Noticed before: {finding}" for finding in findings if finding.startswith(_FAR))
        raise TrainingDiverged(
            f"NaN or infinity at step {step} with learning rate {lr:.2g}; the last checkpoint is unharmed. "
            f"Lower the learning rate, e.g. AdamW({lr / 3:.1g}){noticed}"
        ) from cause


def check_gradients(
    model: Backbone, images: Tensor, *, learner: Backbone | None = None, penalised: bool = False
) -> str | None:
    """After the first backward pass: stop if a trainable parameter got no gradient. One of zero is a gradient.

    Two kinds are none: what a skipped layer lacked by chance, and what of the model's own classification never uses, such as
    the mask token of DINOv2 or what the user has frozen.

    Args:
        model: adapted; only read.
        images: of this step.
        learner: what has the gradients, if not the model.
        penalised: whether the loss has a term that gives all that is trained a gradient, so that having one says nothing.

    Returns:
        A warning that names the model's own parameters which will not train, or None.

    Raises:
        ValueError: other parameters got none; names them, and the remedy.
    """
    adaptation = require_adaptation(model)
    trained = trainable_parameters(model)
    learnt = trainable_parameters(learner or model)
    without = [name for name, parameter in learnt.items() if penalised or parameter.grad is None]
    if not without:
        return None
    frozen = {name for name in without if not trained[name].requires_grad}
    twin = copy.deepcopy(model)
    with torch.random.fork_rng():
        for chance in range(CHANCES):
            if frozen.issuperset(without):
                break
            torch.manual_seed(chance)
            reached = _reached(twin.train(), images)
            without = [name for name in without if name not in reached]
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    # Where the image requires a gradient too, and nothing is skipped.
    used = _reached(twin.eval(), images.clone().requires_grad_()) if without else set()
    idle = [
        name for name in without if name in adaptation.base_names and (name in frozen or name not in used)
    ]
    dead = [name for name in without if name not in idle] if len(without) < len(trained) else without
    if dead:
        if frozen.intersection(dead):
            why = "requires_grad was switched off after adapt; leave out with where= what shall not train"
        elif used.intersection(dead):
            why = (
                "the logits depend on them, but gradient checkpointing of the reentrant kind cuts them off; use "
                "gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False}), "
                "timm.layers.set_reentrant_ckpt(False) or checkpoint(..., use_reentrant=False)"
            )
        else:
            why = (
                "the logits do not depend on them, or the model computes them under no_grad or detaches them; leave them "
                "out with where="
            )
        raise ValueError(
            f"{len(dead)} of {len(trained)} trainable parameters got no gradient in the first backward pass and would never "
            f"train: {_listed(dead)}. Why: {why}"
        )
    if idle:
        return (
            f"{len(idle)} of {len(trained)} trainable parameters get no gradient, as the logits do not depend on them or "
            f"they were frozen after adapt: {_listed(idle)}"
        )
    return None


def _reached(model: Backbone, images: Tensor) -> set[str]:
    """Names of the parameters of the network that a pass of ``images`` gives a gradient."""
    model.zero_grad(set_to_none=True)
    with torch.enable_grad():
        outcome = model(images).square().sum()
    if outcome.requires_grad:
        outcome.backward()
    return {name for name, parameter in model.module.named_parameters() if parameter.grad is not None}


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more


_FAR = "frozen batch norms"


def far_statistics(model: Backbone, images: Tensor) -> str | None:
    """A warning if the frozen statistics of batch norms are far from those of ``images``, as those of a fresh network are.

    The norms then normalise nothing, and training diverges easily. The measure is the mean square of what leaves a norm
    before its scale, which is 1 for the images that its statistics are from: its geometric mean over the channels, and of
    that the median over the norms. Pretrained weights had 0.2 to 0.9 on other data than their own, fresh ones 0.14 or less,
    or (DenseNet) 2.4.
    """
    frozen: list[Any] = frozen_batch_norms(model)
    norms = [norm for norm in frozen if norm.running_var is not None]
    if not norms:
        return None
    sizes: list[float] = []

    def measure(norm: Any, args: tuple[Tensor, ...]) -> None:
        values = args[0].detach().transpose(0, 1).flatten(1).double()
        apart = (values - norm.running_mean[:, None]).square().mean(1) / (norm.running_var + norm.eps)
        sizes.append(float(apart.log().mean().exp()))

    handles = [norm.register_forward_pre_hook(measure) for norm in norms]
    try:
        with modes_kept(model), torch.no_grad():
            model.eval()(images)
    finally:
        for handle in handles:
            handle.remove()
    fresh = not any(bool(norm.running_mean.any() or (norm.running_var != 1).any()) for norm in norms)
    size, bound = statistics.median(sizes or [1.0]), 2 if fresh else 5
    if 1 / bound <= size <= bound:
        return None
    return (
        f"{_FAR} have {'the statistics of no data' if fresh else 'statistics of other data'}: what they pass on has a mean "
        f"square of {size:.2g} instead of 1, and training may diverge. Adapt with bn='adapt', or before adapting call "
        "paretune.training.calibration.calibrate_batchnorm(backbone, data.train)"
    )


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
    if epsilon > 0 and clean <= _clear(chance, examples):
        return (
            f"transfer failure: clean accuracy {clean:.0%} is chance level at epsilon {epsilon * 255:.3g}/255. "
            "Start the attack later (EpsilonSchedule.two_hinge()), lower epsilon, or train longer"
        )
    return None


def no_robustness(clean: float, robust: float, chance: float, examples: int, attack: str) -> str | None:
    """A warning if a model that was trained under attack ends no more robust than an answer that no attack can change,
    though its clean accuracy is above that: only robust accuracy shows that it failed.

    Args:
        clean: accuracy on clean images.
        robust: accuracy under the evaluation attack.
        chance: accuracy of the best constant answer, clean and under every attack.
        examples: number of images; sets how far above chance is clear.
        attack: the evaluation attack, for the message.
    """
    if robust <= _clear(chance, examples) < clean:
        return (
            f"no robustness: of the select split {clean:.0%} are right without an attack, but {robust:.0%} under {attack}, "
            f"where always giving one answer has {chance:.0%}. Train longer, at a higher learning rate or with a strategy "
            "that can change more of the model, or lower epsilon"
        )
    return None


def _clear(chance: float, examples: int) -> float:
    """The accuracy above which a model is clearly better than by chance: by two standard errors."""
    return chance + 2 * math.sqrt(chance * (1 - chance) / examples)


def beginning(model: Backbone) -> dict[str, str]:
    """What :func:`no_op` compares with: a digest of each trained parameter but the head's, by name."""
    return {name: digest(value) for name, value in trainable_parameters(model, head=False).items()}


def no_op(
    model: Backbone, optimizer: torch.optim.Optimizer, begun: Mapping[str, str], step: int, lr: float
) -> str | None:
    """A warning if nothing but the head has learnt since training began.

    A parameter has learnt if its values are others and, where the optimizer keeps averages of its gradients, one of them is
    not zero: weight decay alone changes values too.

    Args:
        model: adapted, and trained.
        optimizer: of it.
        begun: what :func:`beginning` gave before the first step.
        step: for the message.
        lr: peak learning rate, for the message.
    """
    for name, value in trainable_parameters(model, head=False).items():
        averages = [kept for kept in optimizer.state.get(value, {}).values() if kept.shape == value.shape]
        if digest(value) != begun[name] and (not averages or any(bool(kept.any()) for kept in averages)):
            return None
    return (
        f"no adapter parameter moved: after {step} steps at a learning rate of {lr:.2g}, {len(begun)} trained tensors have "
        f"learnt nothing, {next(iter(begun))} among them; at most the head has. Raise the learning rate, e.g. "
        f"AdamW({min(10 * lr, 1.0):.1g}), or let where= name layers that the logits depend on"
    )


def never_attacked(schedule: EpsilonSchedule, epsilon: float) -> str | None:
    """A warning if the attack was still off in the last step.

    Args:
        schedule: of epsilon.
        epsilon: strength of the attack in the last step.
    """
    if epsilon == 0:
        return (
            f"the attack never began: with {schedule!r} the last step is one on clean images. Train longer, let it begin "
            "earlier (patience=2, a larger tolerance), or say when: EpsilonSchedule.two_hinge(0.25, 0.75)"
        )
    return None
