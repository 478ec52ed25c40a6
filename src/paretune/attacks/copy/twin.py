"""A frozen twin of a model in one precision, made of the model's own tensors and kept up to date with them.

The twin holds one tensor for each tensor it computes with and nothing else: a merged weight W + s·B·A, or a convolution
with its batch norm inside, is computed in float32 from the model's tensors and cast into place. So a bfloat16 twin takes
half the memory of the model, whatever the adapter.
"""

import contextlib
import copy
import logging
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from paretune.attacks.copy import folding, rewriting
from paretune.attacks.copy.options import CopyOptions
from paretune.attacks.waiting import runs_ahead
from paretune.backbones.backbone import Backbone, check_scores, in_order, logits_of
from paretune.backbones.random import GENERATORS, borrowed_randomness, draws

logger = logging.getLogger(__name__)

# What switches gradient checkpointing on in modules of timm and transformers; it costs a second forward pass, and of the
# reentrant kind the gradient.
_CHECKPOINTING = ("grad_checkpointing", "gradient_checkpointing")


@dataclass(frozen=True)
class Recipe:
    """How tensors of the twin follow from tensors of the model.

    Args:
        names: the model's tensors that ``compute`` reads.
        compute: the values, from the model's tensors as they are now.
        outputs: the twin's tensors that get the values.
    """

    names: frozenset[str]
    compute: Callable[[], tuple[Tensor, ...]]
    outputs: tuple[Tensor, ...]


class Twin:
    """The same function as ``model`` in evaluation mode, up to rounding, without gradients for its weights.

    What a :class:`~paretune.Backbone` does to its images, (images - mean) / std, stays in float32; the result is cast to
    ``dtype`` and enters the network, whose logits are cast to float32.

    Args:
        model: read now and at each :meth:`refresh`, never changed.
        dtype: of the network.
        options: whether batch norms are folded, and the layout of convolutions.

    Raises:
        ValueError: the model cannot be copied.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, options: CopyOptions) -> None:
        self.dtype = dtype
        self.folded: tuple[str, ...] = ()
        self.rewritten: tuple[str, ...] = ()
        self._model = model
        self._fold_batchnorm = options.fold_batchnorm
        self.draws = False
        self._prepared = False
        if options.channels_last == "auto":
            self.channels_last = any(_has_overlapping_windows(part) for part in model.modules())
        else:
            self.channels_last = options.channels_last
        with torch.inference_mode(False), torch.no_grad():
            self._sources = _named_tensors(model)
            self._recipes: list[Recipe] = []
            self.module = self._build()
            for recipe in self._recipes:
                _write(recipe)
            self._layout = _layout(self._sources)
            self._parts = tuple(model.modules())
            self._seen: dict[str, tuple[int, int] | Tensor | None] = {}
            self._remember(self._sources)

    @property
    def network(self) -> nn.Module:
        """What lies behind the normalisation of a Backbone; the whole module for any other model."""
        return self.module.module if self._splits else self.module  # type: ignore[return-value]

    @property
    def device(self) -> torch.device:
        """Where it computes; the CPU for a model without tensors."""
        return next(_tensors(self.module), torch.empty(0)).device

    @property
    def normalisation(self) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation (1, channels, 1, 1) of the split-off normalisation, float32; None if there is none."""
        return (self.module.mean, self.module.std) if self._splits else None  # type: ignore[return-value]

    def __call__(self, images: Tensor) -> Tensor:
        """Float32 logits (batch, classes) of ``images`` (batch, channels, height, width)."""
        self.prepare(images)
        return self.logits(self.enter(images))

    def enter(self, images: Tensor) -> Tensor:
        """The input of the network for ``images``: laid out, normalised in float32, and cast."""
        images = self.laid_out(images)
        if self._splits:
            images = (images - self.module.mean) / self.module.std  # type: ignore[operator]
        return images.to(self.dtype)

    def laid_out(self, images: Tensor) -> Tensor:
        """``images`` in the memory layout of the network."""
        if self.channels_last and images.ndim == 4:
            return images.contiguous(memory_format=torch.channels_last)
        return images

    def logits(self, entered: Tensor) -> Tensor:
        """Float32 logits of what :meth:`enter` returned."""
        order: Any = self.module.channel_order if self._splits else None
        logits = run(self.network, entered if order is None else in_order(entered, order))
        check_scores(logits)
        return logits.float()

    def prepare(self, images: Tensor) -> None:
        """Bring the network into its cheapest form; on the first batch, because that takes an image it accepts."""
        if not self._prepared and len(images):
            with GENERATORS, torch.inference_mode(False):
                self._prepare(images)

    def _prepare(self, images: Tensor) -> None:
        if not self._prepared:  # by another thread
            image = self.enter(images[:1].detach().clone().float())
            with torch.no_grad():
                self.draws = draws(lambda: run(self.network, image), cuda_devices(images))
            with borrowed_randomness(cuda_devices(images)) if self.draws else contextlib.nullcontext():
                self._simplify(image)
            self._prepared = True

    def _simplify(self, image: Tensor) -> None:
        if self._fold_batchnorm:
            folds = folding.fold_batchnorms(self.network, image, run)
            self._adopt(folds)
            self.folded = tuple(self._prefix + fold.norm for fold in folds)
        if not self.channels_last:
            rewriting.patches_as_products(self.network)
        rewriting.activations_out_of_place(self.network, image, run)
        self.rewritten = tuple(rewriting.class_token_only(self.network, image, run))
        logger.debug(
            "attack copy: %d batch norms folded, channels_last=%s, last block %s",
            len(self.folded),
            self.channels_last,
            "for the class token only" if self.rewritten else "in full",
        )

    def refresh(self) -> bool:
        """Take over the model's present tensors in place; False, with nothing done, if it has others or other modules."""
        sources = _named_tensors(self._model)
        # Another module may compute something else from tensors of the same names, such as a LoRA of another alpha.
        parts = tuple(self._model.modules())
        same = len(parts) == len(self._parts) and all(map(operator.is_, parts, self._parts))
        if not same or _layout(sources) != self._layout:
            return False
        with torch.inference_mode(False), torch.no_grad():
            changed = {name for name, source in sources.items() if self._has_changed(name, source)}
            self._sources = sources
            for recipe in self._recipes:
                if recipe.names & changed:
                    _write(recipe)
            self._remember({name: sources[name] for name in changed})
        if changed:
            # Some models (TinyViT, LeViT) keep what follows from their weights in evaluation mode, and drop it so.
            self.module.train()
            self.module.eval()
        return True

    def _build(self) -> nn.Module:
        """A copy of the model with empty tensors in this precision, and the recipes that fill them."""
        inside = {  # the same tensor may also be used outside
            f"{place}.{tensor_name}".lstrip(".")
            for place, part in self._model.named_modules(remove_duplicate=False)
            if isinstance(part, parametrize.ParametrizationList)
            for tensor_name in _named_tensors(part)
        }
        outside = {id(source) for name, source in self._sources.items() if name not in inside}
        memo: dict[int, Any] = {}
        self._splits = _is_plain_backbone(self._model)
        for name, source in self._sources.items():
            if id(source) not in memo:
                stand_in = self._empty(source, name) if id(source) in outside else source.to("meta")
                is_parameter = isinstance(source, nn.Parameter)
                memo[id(source)] = nn.Parameter(stand_in, requires_grad=False) if is_parameter else stand_in
                if id(source) in outside:

                    def compute(name: str = name) -> tuple[Tensor, ...]:
                        return (self._sources[name],)

                    self._recipes.append(Recipe(frozenset({name}), compute, (memo[id(source)],)))
        twin = _deepcopy(self._model, memo).eval()
        for part in twin.modules():
            _restore_forward(part)
            for flag in _CHECKPOINTING:
                if isinstance(getattr(part, flag, None), bool):
                    setattr(part, flag, False)
        for name, part in list(twin.named_modules()):
            if parametrize.is_parametrized(part):
                self._merge(name, part)
        if next(_tensors(self._model), torch.empty(0)).device.type == "cpu":
            _unfuse_attention(twin)
        return twin

    def _empty(self, source: Tensor, name: str) -> Tensor:
        """A tensor for ``source``, in this precision if it is a number the network computes with."""
        dtype = self.dtype if source.is_floating_point() else source.dtype
        if self._splits and name in ("mean", "std"):
            dtype = torch.float32
        tensor = torch.empty_like(source, dtype=dtype, requires_grad=False)
        if self.channels_last and tensor.ndim == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    def _merge(self, place: str, part: nn.Module) -> None:
        """Replace each parametrized tensor of ``part`` by a plain one, with the recipe that computes it.

        Not through ``remove_parametrizations``: a deep copy shares its class with the original, and that function
        deletes the property from the class, which breaks the original.
        """
        lists: Any = part.parametrizations
        part.__class__ = parametrize.type_before_parametrizations(part)
        del part.parametrizations
        for tensor_name, parametrization in lists.items():
            prefix = f"{place}.parametrizations.{tensor_name}.".lstrip(".")
            # Each tensor once: functional_call ties the rest.
            names = {
                name: prefix + name
                for name, _ in (*parametrization.named_parameters(), *parametrization.named_buffers())
            }

            def compute(
                parametrization: nn.Module = parametrization, names: Any = names
            ) -> tuple[Tensor, ...]:
                values = {}
                for name, full in names.items():
                    source = self._sources[full].detach()
                    value = source.float() if source.is_floating_point() else source
                    # A parametrization may write to its buffers, which are the model's own here.
                    is_buffer = not isinstance(self._sources[full], nn.Parameter)
                    shared = is_buffer and value.data_ptr() == source.data_ptr()
                    values[name] = value.clone() if shared else value
                return (torch.func.functional_call(parametrization, values, ()),)

            merged = self._empty(compute()[0], f"{place}.{tensor_name}")
            part.register_parameter(tensor_name, nn.Parameter(merged, requires_grad=False))
            self._recipes.append(Recipe(frozenset(names.values()), compute, (getattr(part, tensor_name),)))

    def _adopt(self, folds: list[folding.Fold]) -> None:
        """Add the recipes for what came out of ``folds``, and drop those of tensors that nothing uses any more."""
        recipes = {id(output): recipe for recipe in self._recipes for output in recipe.outputs}
        for fold in folds:
            parts = {role: recipes[id(tensor)] for role, tensor in fold.inputs.items()}

            def compute(fold: folding.Fold = fold, parts: dict[str, Recipe] = parts) -> tuple[Tensor, ...]:
                return folding.folded({role: recipe.compute()[0] for role, recipe in parts.items()}, fold.eps)

            names = frozenset[str]().union(*(recipe.names for recipe in parts.values()))
            with torch.no_grad():
                self._recipes.append(Recipe(names, compute, fold.outputs))
                _write(self._recipes[-1])
        used = {id(tensor) for tensor in _tensors(self.module)}
        self._recipes = [r for r in self._recipes if any(id(output) in used for output in r.outputs)]

    @property
    def _prefix(self) -> str:
        return "module." if self._splits else ""

    def _remember(self, sources: dict[str, Tensor]) -> None:
        """Note the state of ``sources``, so that a later change shows."""
        for name, source in sources.items():
            if isinstance(source, nn.Parameter):
                self._seen[name] = _stamp(source)
            else:
                # Buffers by value, because batch norms update their statistics without torch counting it; None, which is
                # always a change, where a comparison would wait.
                self._seen[name] = None if runs_ahead(source.device) else source.clone()

    def _has_changed(self, name: str, source: Tensor) -> bool:
        seen = self._seen[name]
        if isinstance(seen, Tensor):
            return isinstance(source, nn.Parameter) or not torch.equal(source, seen)
        return source.requires_grad or seen is None or _stamp(source) != seen


def run(module: nn.Module, entered: Tensor) -> Tensor:
    """Logits of a model, whether it returns them or an object that has them.

    Autocast is off: a caller's would spoil the gradient of a ConvNet.
    """
    with torch.autocast(entered.device.type, enabled=False):
        return logits_of(module(entered))


def _write(recipe: Recipe) -> None:
    for tensor, value in zip(recipe.outputs, recipe.compute(), strict=True):
        tensor.copy_(value)


def _is_plain_backbone(model: nn.Module) -> bool:
    """Whether ``model`` does what :meth:`Backbone.forward` does, and no hook sees what enters or leaves it."""
    forward = vars(model).get("_original_forward", vars(model).get("forward", model.forward))
    return (
        type(model) is Backbone
        and getattr(forward, "__func__", None) is Backbone.forward
        and not model._forward_hooks
        and not model._forward_pre_hooks
    )


def _deepcopy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        return copy.deepcopy(model, memo)
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


def _has_overlapping_windows(part: nn.Module) -> bool:
    return isinstance(part, nn.Conv2d) and any(
        size > stride for size, stride in zip(part.kernel_size, part.stride, strict=True)
    )


def _unfuse_attention(module: nn.Module) -> None:
    """Use matmul, softmax, matmul in the models of timm and transformers.

    On the CPU that is as fast in float32 as the fused kernel, whose backward is slow in bfloat16. Its result has also
    depended on the strides of the gradient (https://github.com/pytorch/pytorch/issues/133671).
    """
    for part in module.modules():
        if isinstance(getattr(part, "fused_attn", None), bool):
            part.fused_attn = False  # type: ignore[assignment]
        if hasattr(part, "set_attn_implementation"):
            part.set_attn_implementation("eager")  # type: ignore[operator]


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; one that has several names under each of them."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _layout(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.device, str]]:
    """Shape and device of each tensor, and the first name it has: what must stay for a copy to be refreshed."""
    first: dict[int, str] = {}
    return {
        name: (tensor.shape, tensor.device, first.setdefault(id(tensor), name))
        for name, tensor in tensors.items()
    }


def _stamp(tensor: Tensor) -> tuple[int, int] | None:
    """Differs after a change in place and for another storage; None where torch does not count changes."""
    return None if tensor.is_inference() else (tensor._version, tensor.data_ptr())


def cuda_devices(images: Tensor) -> list[torch.device]:
    """Whose generators a model may draw from besides that of the CPU."""
    return [images.device] if images.device.type == "cuda" else []
