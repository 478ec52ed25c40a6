"""The attack copy: the same function as the user's model, in the form in which its input gradient is
cheapest.

At equal precision no attack loop beats another by more than a few percent; the model it differentiates
decides. So attacks run on a frozen twin: evaluation mode, adapters merged into the weights, batch norms
folded into convolutions, channels last, float32. The user's model is only ever read.
"""

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from paretune.attacks.folding import fold_batchnorms

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Derived:
    """Tensors of the twin that are computed from others: merged weights and folded convolutions."""

    inputs: tuple[Tensor, ...]
    compute: Callable[[], tuple[Tensor, ...]]
    outputs: tuple[Tensor, ...]


class AttackCopy:
    """A frozen twin of a model, made by :func:`attack_copy`.

    Calling it with images (batch, channels, height, width) in [0, 1] gives float32 logits (batch, classes).
    It computes what the model computes in evaluation mode, up to rounding.
    """

    def __init__(
        self, model: nn.Module, *, fold_batchnorm: bool = True, channels_last: bool | Literal["auto"] = "auto"
    ) -> None:
        self._model = model
        self._fold_batchnorm = fold_batchnorm
        self._channels_last_wish = channels_last
        self._build()

    def __call__(self, images: Tensor) -> Tensor:
        """Float32 logits (batch, classes) of ``images``; gradients flow to ``images`` only."""
        if self._unfolded and len(images):
            self._fold(images[:1])
        if self.channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        return _forward(self._twin, images).float()

    @property
    def device(self) -> torch.device:
        """Where the twin computes; the CPU for a model without tensors."""
        return next(_tensors(self._twin), torch.empty(0)).device

    @property
    def folded(self) -> tuple[str, ...]:
        """Names of the batch norms that are folded away; known once the first batch has passed."""
        return self._folded_names

    def refresh(self) -> None:
        """Take over the model's present weights, in place: call it after each optimiser step.

        Trainable parameters are always read again, frozen ones when torch has counted a change, and buffers
        (batch-norm statistics) when their values differ. Only what is made of changed tensors is merged or
        folded again. A model whose tensors have other names, shapes or another device than before is copied
        afresh.
        """
        sources = _named_tensors(self._model)
        if _layout(sources) != self._layout:
            logger.info("the model has other tensors than before: the attack copy is made anew")
            self._build()
            return
        with torch.no_grad():
            changed: set[int] = set()
            for name, source in sources.items():
                mirror = self._mirrors[name]
                if self._has_changed(name, source, mirror):
                    mirror.copy_(source)
                    self._stamps[name] = _stamp(source)
                    changed.add(id(mirror))
            for derived in self._derived:
                if any(id(tensor) in changed for tensor in derived.inputs):
                    for tensor, value in zip(derived.outputs, derived.compute(), strict=True):
                        tensor.copy_(value)
                        changed.add(id(tensor))

    def _has_changed(self, name: str, source: Tensor, mirror: Tensor) -> bool:
        if not isinstance(source, nn.Parameter):
            # By value, because batch norms update their statistics without torch counting it.
            return not torch.equal(source.to(mirror.dtype), mirror)
        stamp = _stamp(source)
        return source.requires_grad or stamp is None or stamp != self._stamps[name]

    def _build(self) -> None:
        sources = _named_tensors(self._model)
        with torch.inference_mode(False), torch.no_grad():
            twin = _deepcopy(self._model).eval().requires_grad_(False).float()
            for part in twin.modules():
                _restore_forward(part)
            self._layout = _layout(sources)
            self._stamps = {name: _stamp(source) for name, source in sources.items()}
            self._mirrors = _named_tensors(twin)  # before merging, so under the model's own names
            self._derived = [derived for part in list(twin.modules()) for derived in _merge(part)]
            if self._channels_last_wish == "auto":
                self.channels_last = any(_has_overlapping_windows(part) for part in twin.modules())
            else:
                self.channels_last = self._channels_last_wish
            if self.channels_last:
                twin.to(memory_format=torch.channels_last)
            self._twin = twin
            if self.device.type == "cpu":
                _unfuse_attention(twin)
        self._unfolded = self._fold_batchnorm
        self._folded_names: tuple[str, ...] = ()

    def _fold(self, image: Tensor) -> None:
        """Fold on the first batch, because finding the pairs takes an image of a size the model accepts."""
        with torch.inference_mode(False):
            image = image.detach().clone().float()
            folds = fold_batchnorms(self._twin, image, _forward)
        self._derived += [_Derived(fold.inputs, fold.compute, fold.outputs) for fold in folds]
        self._folded_names = tuple(fold.norm for fold in folds)
        self._unfolded = False
        logger.debug("attack copy: %d batch norms folded, channels_last=%s", len(folds), self.channels_last)


def attack_copy(
    model: nn.Module | AttackCopy,
    *,
    fold_batchnorm: bool = True,
    channels_last: bool | Literal["auto"] = "auto",
) -> AttackCopy:
    """Make the frozen twin of ``model`` that attacks differentiate; an attack copy is returned as it is.

    Attacks make one themselves when they are given a plain model. Make it once, and call
    :meth:`AttackCopy.refresh` after each change of the weights, where many batches are attacked.

    The twin is always in evaluation mode: a model in training mode is attacked without dropout and with the
    running statistics of its batch norms. Hooks, and tensors that are neither parameters nor buffers, are copied
    once and not refreshed.

    Example:
        >>> import timm
        >>> victim = attack_copy(timm.create_model("test_resnet", num_classes=10))
        >>> victim(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Args:
        model: any classifier that takes images in [0, 1] and returns logits or an object with ``.logits``.
            Wrappers of torch.compile and DistributedDataParallel are taken off.
        fold_batchnorm: fold batch norms into the convolutions before them, where that is provably the same
            function.
        channels_last: memory layout of convolutions; ``"auto"`` uses it where windows of a convolution
            overlap, so not for a ViT, whose only convolution cuts patches.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: the model cannot be copied.
    """
    if isinstance(model, AttackCopy):
        return model
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module or an AttackCopy, got {type(model).__name__}")
    if channels_last not in (True, False, "auto"):
        raise ValueError(f"channels_last must be True, False or 'auto', got {channels_last!r}")
    return AttackCopy(_unwrap(model), fold_batchnorm=fold_batchnorm, channels_last=channels_last)


def _unwrap(model: nn.Module) -> nn.Module:
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):  # torch.compile
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def _forward(module: nn.Module, images: Tensor) -> Tensor:
    # A caller's autocast would make the gradient of a ConvNet useless (its cosine with the true one is about
    # 0.5).
    with torch.autocast(images.device.type, enabled=False):
        output: Any = module(images)
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


def _deepcopy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{type(model).__name__} cannot be copied, so it cannot be attacked: {error}. The usual cause is a "
            "module that keeps an activation, or a weight computed by torch.nn.utils.weight_norm; use "
            "torch.nn.utils.parametrizations.weight_norm instead"
        ) from error


def _restore_forward(part: nn.Module) -> None:
    """Undo what accelerate does to the forward for mixed precision; refuse a forward that belongs to the original."""
    original = part.__dict__.pop("_original_forward", None)
    if original is not None:
        part.forward = original
    if isinstance(part.__dict__.get("forward"), FunctionType):
        raise ValueError(
            f"the forward of a {type(part).__name__} was replaced by a plain function, which a copy would share with "
            "the original; assign types.MethodType(function, module) instead, or subclass"
        )


def _merge(part: nn.Module) -> Iterator[_Derived]:
    """Replace each parametrized tensor of ``part`` by its value, and say how to compute it again.

    Not through ``remove_parametrizations``: a deep copy shares its class with the original, and that function
    deletes the property from the class, which breaks the original.
    """
    if not parametrize.is_parametrized(part):
        return
    lists: Any = part.parametrizations
    part.__class__ = parametrize.type_before_parametrizations(part)
    del part.parametrizations
    for name, parametrization in lists.items():
        part.register_parameter(name, nn.Parameter(parametrization().clone(), requires_grad=False))
        yield _Derived(
            tuple(_tensors(parametrization)),
            lambda parametrization=parametrization: (parametrization(),),  # type: ignore[misc]
            (getattr(part, name),),
        )


def _has_overlapping_windows(part: nn.Module) -> bool:
    return isinstance(part, nn.Conv2d) and any(
        size > stride for size, stride in zip(part.kernel_size, part.stride, strict=True)
    )


def _unfuse_attention(module: nn.Module) -> None:
    """Use matmul, softmax, matmul in timm's models.

    On the CPU that is as fast in float32 as the fused kernel, whose backward has depended on the strides of
    the gradient (https://github.com/pytorch/pytorch/issues/133671).
    """
    for part in module.modules():
        if isinstance(getattr(part, "fused_attn", None), bool):
            part.fused_attn = False  # type: ignore[assignment]


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _named_tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _layout(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.device]]:
    return {name: (tensor.shape, tensor.device) for name, tensor in tensors.items()}


def _stamp(tensor: Tensor) -> tuple[int, int] | None:
    """Differs after a change in place and for another storage; None where torch does not count changes."""
    return None if tensor.is_inference() else (tensor._version, tensor.data_ptr())
