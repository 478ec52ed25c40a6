"""The attack copy: the same function as the user's model, in the form in which its input gradient is
cheapest.

At equal precision no attack loop beats another by more than a few percent; the model it differentiates
decides. So attacks run on a frozen twin: evaluation mode, adapters merged into the weights, batch norms
folded into convolutions, channels last, and bfloat16 where that is faithful and faster. The user's model is only
ever read.
"""

import contextlib
import functools
import logging
from typing import Literal

import torch
from torch import Tensor, nn

from paretune.attacks.copy.captured import CapturedSteps
from paretune.attacks.copy.looks import CapturedLooks
from paretune.attacks.copy.options import CopyOptions, Engine
from paretune.attacks.copy.precision import Decision, Precision, decide
from paretune.attacks.copy.steps import Ascent, CompiledSteps
from paretune.attacks.copy.twin import Twin, cuda_devices
from paretune.attacks.threats import Threat
from paretune.attacks.waiting import extent
from paretune.backbones.bases import check_values, unwrapped
from paretune.backbones.random import GENERATORS, borrowed_randomness
from paretune.backbones.threads import Gate, Lock

logger = logging.getLogger(__name__)


class AttackCopy:
    """A frozen twin of a model, made by :func:`attack_copy`.

    Calling it with images (batch, channels, height, width) in [0, 1] gives float32 logits (batch, classes).
    It computes what the model computes in evaluation mode, up to the rounding of its :attr:`precision`.

    Several threads may attack one copy at once; :meth:`refresh` waits until no attack runs on it.
    """

    def __init__(self, model: nn.Module, options: CopyOptions) -> None:
        self._model = model
        self.options = options
        self.gate = Gate()
        self._making = Lock()  # of twins and what is recorded, and the buffers of recorded steps
        self._build()

    def __call__(self, images: Tensor) -> Tensor:
        """Float32 logits (batch, classes) of ``images``; gradients flow to ``images`` only.

        The first batch that asks for gradients decides the precision. Until then logits are computed in float32.
        """
        with self.gate.using():
            if torch.is_grad_enabled() and images.requires_grad:
                self._decide(images)
            return self._any(images)

    @torch.no_grad()
    def exact(self, images: Tensor) -> Tensor:
        """Float32 logits (batch, classes) computed in float32, without gradient: what a success is verified with."""
        with self.gate.using():
            return self._look(self._exact_twin(), images)

    def look(self, images: Tensor) -> Tensor:
        """As a call, but by a graph where the engine takes one and the shape of the batch comes often: for searches.

        The gradient has no gradient of its own then.
        """
        with self.gate.using():
            wanted = torch.is_grad_enabled() and images.requires_grad
            return self._look(self._decide(images) if wanted else self._any, images)

    def _look(self, twin: Twin, images: Tensor) -> Tensor:
        twin.prepare(images)
        if not len(images) or self._chosen_engine(twin) != "graph":
            return twin(images)
        if (looks := self._looks.get(twin)) is None:
            with self._making:
                captured = CapturedLooks(twin, where_it_helps=self.options.engine == "auto")
                looks = self._looks.setdefault(twin, captured)
        return looks(images)

    def draws(self, images: Tensor) -> bool:
        """Whether the model draws from torch's global generators in evaluation mode; the first batch tells."""
        twin = self._any
        twin.prepare(images)
        return twin.draws

    def ascend(
        self,
        threat: Threat,
        images: Tensor,
        images_adv: Tensor,
        goals: Tensor,
        *,
        step_size: float,
        steps: int = 1,
        targeted: bool = False,
        highest_class: int | None = None,
    ) -> Tensor:
        """``images_adv`` after steps of projected gradient ascent on the cross-entropy, for the whole batch.

        Each step is one forward and one backward pass of the network, :meth:`Threat.step` and
        :meth:`Threat.project`; nothing looks at single examples. Outside the network all is float32.

        Args:
            threat: the ball to stay in.
            images: clean images (batch, channels, height, width) in [0, 1], float32.
            images_adv: where to start, in the ball; float32, of the same shape.
            goals: true classes (batch,), int64; the wanted ones if ``targeted``.
            step_size: length of a step in pixel units, in the norm of ``threat``.
            steps: how many, at least 1.
            targeted: descend to ``goals`` instead.
            highest_class: of ``goals`` the largest, or more; looked for when None, which an accelerator is waited for.

        Returns:
            Float32 images of the same shape, in the ball and in [0, 1].

        Raises:
            ValueError: the model has too few classes, no gradient, or one that is NaN or infinite.
        """
        if not len(images):
            return images_adv.detach().clone()
        with (
            self.gate.using(),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(images.device.type, enabled=False),
        ):
            twin = self._decide(images_adv)
            twin.prepare(images_adv)
            if highest_class is None:
                _, highest_class = extent(goals)
            ascent = Ascent(
                threat, images.detach(), goals, step_size, threat.epsilon, targeted, highest_class
            )
            with self._making:
                recorded = self._recorded_steps(twin)
                if recorded is not None:
                    return recorded(ascent, images_adv, steps)
            return ascent(twin, images_adv, steps)

    @property
    def engine(self) -> Engine:
        """What has taken the steps of :meth:`ascend` and the looks of searches so far; before the first of them, what is
        wished for."""
        taken = [look.engine for look in (self._recorded, *self._looks.values()) if look is not None]
        engines = [engine for engine in taken if engine != "eager"]
        return engines[0] if engines else self.options.engine if self._engine is None else "eager"

    @property
    def precision(self) -> Literal["auto"] | Precision:
        """What gradients are computed in, ``"fp32"`` or ``"bf16"``; ``"auto"`` until the first batch has decided."""
        return "auto" if self._decision is None else self._decision.precision

    @property
    def decision(self) -> Decision | None:
        """The precision, and the measurements that led to it; None until the first batch has decided."""
        return self._decision

    @property
    def device(self) -> torch.device:
        """Where the twin computes; the CPU for a model without tensors."""
        return self._any.device

    @property
    def folded(self) -> tuple[str, ...]:
        """Names of the batch norms that are folded away; known once the first batch has passed."""
        return self._any.folded

    @property
    def channels_last(self) -> bool:
        """Whether convolutions see their channels last."""
        return self._any.channels_last

    def refresh(self) -> None:
        """Take over the model's present weights, in place: call it after each optimizer step.

        Trainable parameters are always read again, frozen ones when torch has counted a change, and buffers
        (batch-norm statistics) when their values differ; on an accelerator always, because a comparison would
        wait for it. Only what is made of changed tensors is merged or folded again. A model whose tensors have
        other names, shapes or another device than before is copied afresh, and its precision decided anew.

        Raises:
            RuntimeError: called in the course of an attack on this copy.
        """
        with self.gate.changing():
            twins = [twin for twin in (self._exact, self._fast) if twin is not None]
            if not all(twin.refresh() for twin in dict.fromkeys(twins)):
                logger.info("the model has other tensors than before: the attack copy is made anew")
                self._build()

    def _build(self) -> None:
        self._exact: Twin | None = None
        self._fast: Twin | None = None
        self._recorded: CompiledSteps | CapturedSteps | None = None
        self._looks: dict[Twin, CapturedLooks] = {}
        self._engine: Engine | None = None
        self._decision: Decision | None = None
        precision = self.options.precision
        if precision == "bf16":
            self._fast = self._twin(torch.bfloat16)
        else:
            self._exact = self._twin(torch.float32)
            if precision == "fp32":
                self._fast = self._exact
        if precision != "auto":
            self._decision = Decision(precision, "asked for")

    def _twin(self, dtype: torch.dtype) -> Twin:
        return Twin(self._model, dtype, self.options)

    def _chosen_engine(self, twin: Twin) -> Engine:
        """What is to take steps and looks. Chosen once."""
        if self._engine is not None:
            return self._engine
        with self._making:
            if self._engine is None:  # nor chosen by another thread
                self._engine, reason = self.options.choose_engine(twin.device, draws=twin.draws)
                if self.options.engine not in ("auto", self._engine):
                    level = logging.WARNING
                elif twin.device.type == "cuda" or self._engine != "eager":
                    level = logging.INFO
                else:  # without a GPU there was nothing to choose
                    level = logging.DEBUG
                logger.log(level, "attack copy: %s steps; %s", self._engine, reason)
            return self._engine

    def _recorded_steps(self, twin: Twin) -> CompiledSteps | CapturedSteps | None:
        """What replaces single steps; None where nothing does."""
        engine = self._chosen_engine(twin)
        if self._recorded is None and engine == "compiled":
            self._recorded = CompiledSteps(twin)
        elif self._recorded is None and engine == "graph":
            self._recorded = CapturedSteps(twin, where_it_helps=self.options.engine == "auto")
        return self._recorded

    @property
    def _any(self) -> Twin:
        return self._fast or self._exact_twin()

    def _exact_twin(self) -> Twin:
        with self._making:
            if self._exact is None:
                self._exact = self._twin(torch.float32)
            return self._exact

    def _decide(self, images: Tensor) -> Twin:
        """The twin whose gradients attacks use; measured on ``images`` if that is still open."""
        if self._fast is not None:
            return self._fast
        with GENERATORS:
            return self._fast_twin(images)

    def _fast_twin(self, images: Tensor) -> Twin:
        if self._fast is not None:  # by another thread
            return self._fast
        exact = self._exact_twin()
        if not len(images):
            return exact
        exact.prepare(images)
        borrowed = borrowed_randomness(cuda_devices(images)) if exact.draws else contextlib.nullcontext()
        with torch.inference_mode(False), borrowed:
            self._decision, half = decide(
                exact, functools.partial(self._twin, torch.bfloat16), images.detach()
            )
        if half is not None:
            self._exact = None  # made again to verify successes; training never does
            self._looks.pop(exact, None)
        self._fast = half or exact
        return self._fast


def attack_copy(
    model: nn.Module | AttackCopy,
    *,
    precision: Literal["auto"] | Precision = "fp32",
    engine: Engine = "auto",
    fold_batchnorm: bool = True,
    channels_last: bool | Literal["auto"] = "auto",
) -> AttackCopy:
    """Make the frozen twin of ``model`` that attacks differentiate; an attack copy is returned as it is.

    Attacks make one themselves when they are given a plain model. Make it once, and call
    :meth:`AttackCopy.refresh` after each change of the weights, where many batches are attacked.

    The twin is always in evaluation mode: a model in training mode is attacked without dropout and with the
    running statistics of its batch norms. Hooks, and tensors that are neither parameters nor buffers, are copied
    once and not refreshed.

    Several threads may attack one model or one copy at once, and each gets what it gets alone. The first batch of a copy
    shows by one image whether the model draws random numbers itself; attacks on such a model take turns, because torch's
    global generators belong to all threads.

    Example:
        >>> import timm
        >>> victim = attack_copy(timm.create_model("test_resnet", num_classes=10))
        >>> victim(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Args:
        model: any classifier that takes images in [0, 1] and returns logits or an object with ``.logits``.
            Wrappers of torch.compile and DistributedDataParallel are taken off.
        precision: of the network's weights and activations; images, perturbations and losses are float32 always.
            ``"auto"`` measures on the first batch and takes bfloat16 only where its gradient is faithful and cheaper, by
            the rule of :func:`~paretune.attacks.copy.precision.decide`. It is not the default, because a measurement of time
            may end otherwise on another day or machine; to repeat a result, name what :attr:`AttackCopy.precision` says.
        engine: what takes the steps of :meth:`AttackCopy.ascend`, hence those of training. ``"eager"`` takes them one by
            one, on a CUDA device with the fused step of :mod:`paretune.kernels`. ``"graph"`` records them, that step
            included, as a CUDA graph for each batch shape and replays it: the same bits, for small models in much less
            time. ``"auto"`` is a graph on a CUDA device where Python is slower to send a step than the GPU to compute it,
            else eager. ``"compiled"`` compiles a step with torch.compile, which rounds otherwise and takes a minute or two
            for each batch shape, so it pays in long training. What cannot be recorded or compiled is taken one by one; the
            log says what was taken and why. Attacks whose solved images leave the batch take their steps one by one; a graph
            replays their looks at the network, the forward and the backward pass, for the shapes of batches that come often.
        fold_batchnorm: fold batch norms into the convolutions before them, where that is provably the same
            function.
        channels_last: memory layout of convolutions; ``"auto"`` uses it where windows of a convolution
            overlap, so not for a ViT, whose only convolution cuts patches.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: an option is not one of those above, or the model cannot be copied.
    """
    if isinstance(model, AttackCopy):
        return model
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module or an AttackCopy, got {type(model).__name__}")
    check_values(model)
    options = CopyOptions(
        precision=precision, engine=engine, fold_batchnorm=fold_batchnorm, channels_last=channels_last
    )
    return AttackCopy(unwrapped(model), options)
