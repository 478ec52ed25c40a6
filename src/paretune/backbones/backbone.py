"""Pretrained classifiers behind one type: images in [0, 1] go in, logits come out."""

import copy
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from paretune.backbones.bases import check_base, check_values, heads, unwrapped
from paretune.backbones.blocks import HeadBlock
from paretune.backbones.modes import frozen_batch_norms
from paretune.backbones.sites import Site, find_sites, laid_out
from paretune.data.sizes import ImageSize, checked_size, pair

log = logging.getLogger(__name__)

StateDict = Mapping[str, Tensor]

_TASK = "_paretune_task"


@dataclass(frozen=True)
class Task:
    """What a model was trained for, as far as that is known.

    Args:
        classes: names of the classes, in the order of the logits.
        data: what adapter files say of the data: plain JSON values.
    """

    classes: tuple[str, ...] | None = None
    data: Mapping[str, Any] | None = None


class Backbone(nn.Module):
    """A classifier that takes images in [0, 1] and normalises them inside.

    Args:
        module: any image classifier that maps normalised images (batch, channels, height, width) to logits
            (batch, classes), to an object with ``.logits`` as transformers' models do, or to a tuple that begins with them.
            Wrappers of torch.compile and DistributedDataParallel are taken off; wrap or compile the Backbone instead. In
            half or double precision the images are cast to it, behind the normalisation, which is float32 at least.
        mean: per-channel mean, in [0, 1] pixel units.
        std: per-channel standard deviation, in the same units, above 0.
        head: dotted name of the classifier layer; the last ``nn.Linear`` when None.
        sites: where the residual branches end, for the strategies that insert modules (Compacter): glob patterns of
            module names whose *output* (the first of several) is a branch, or :class:`~paretune.backbones.Site`
            objects. None finds them by the structure of the known families (``docs/support.md`` lists them). One blank image
            shows how the branches are laid out.
        image_size: in pixels, the side of the square images that the model is used at, or (height, width) of others; None
            reads it off the model's configuration, and is 224 where there is none.
        channel_order: which channel of the images the network takes first, second, …: (2, 1, 0) for a network of BGR. None
            is their own order, which is that of ``mean`` and ``std`` in any case.
        architecture: the name that adapter files record and compare; taken from timm or transformers when None.
        source: the name that :func:`load_backbone` makes this model from, recorded in adapter files.

    Raises:
        ValueError: ``head`` names no layer, or the network has two; ``std`` is not above 0, a pattern in ``sites`` matches
            nothing, the module takes no images of the height and width, or it is no classifier that has gradients, such as
            one that is quantised.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        module: nn.Module,
        *,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        head: str | None = None,
        sites: Sequence[str | Site] | None = None,
        image_size: ImageSize | None = None,
        channel_order: Sequence[int] | None = None,
        architecture: str | None = None,
        source: str | None = None,
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f"mean and std need one entry a channel and std > 0; got mean={mean}, std={std}")
        if channel_order is not None and sorted(channel_order) != list(range(len(mean))):
            raise ValueError(
                f"channel_order must hold each of the {len(mean)} channels once, as (2, 1, 0) does; got {channel_order}"
            )
        if image_size is not None:
            image_size = checked_size("image_size", image_size)
        check_base(module := unwrapped(module))
        self.module = module
        device = next((parameter.device for parameter in module.parameters()), None)
        for name, values in (("mean", mean), ("std", std)):
            buffer = torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)
            self.register_buffer(name, buffer, persistent=False)
        order = tuple(range(len(mean))) if channel_order is None else tuple(channel_order)
        self.channel_order = None if order == tuple(range(len(mean))) else order
        recorded = recorded_size(module)
        self.image_size = image_size or checked_size("the model's own image_size", recorded or 224)
        self.head = find_head(module, head)
        self._head_is_open = True
        for size in (self.image_size, recorded):
            if self._head_is_open and (isinstance(size, int) or (isinstance(size, tuple) and len(size) == 2)):
                self._check_head(self._example(size))
        if isinstance(self.image_size, tuple) and not self.mean.is_meta:
            self._check_size()
        self.architecture = architecture or architecture_of(module)
        self.source = source
        self.published = False  # whether the weights are those that ``source`` names; load_backbone knows
        self._sites = sites
        self.training = module.training

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, channels, height, width) in [0, 1]; at least in float32.

        Raises:
            ValueError: the network returns something else than logits, as wide as its head; or it has no values.
        """
        if self.mean.is_meta and not images.is_meta:
            check_values(self.module)
        entered = self.enter(images)
        if self._head_is_open and not torch.compiler.is_compiling():
            self._check_head(entered[:1].detach())
            self._head_is_open = False
        logits = _checked(logits_of(self.module(entered)))
        if logits.shape[1] != self.num_classes:
            raise ValueError(
                f"the head {self.head!r} has {self.num_classes} outputs, but the network returns {logits.shape[1]} logits: "
                "name the layer that makes them with head="
            )
        return logits

    def enter(self, images: Tensor) -> Tensor:
        """What the network is shown for images in [0, 1]: normalised, its channels in order, in its precision."""
        normalised = (images - self.mean) / self.std
        ordered = normalised if self.channel_order is None else in_order(normalised, self.channel_order)
        return ordered.to(dtype_of(self.module))

    def train(self, mode: bool = True) -> "Backbone":
        """Switch to training mode; batch norms whose statistics a strategy froze stay in evaluation mode."""
        super().train(mode)
        for norm in frozen_batch_norms(self.module) if mode else ():
            norm.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As ``nn.Module``, but half precision is for the network: mean and std keep the numbers they were given."""
        kept = {"mean": self.mean, "std": self.std}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch has no types for it
        for name, value in kept.items():
            moved = getattr(self, name)
            if moved.element_size() < value.element_size():
                setattr(self, name, value.to(moved.device))
        return self

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        head: Any = self.module.get_submodule(self.head)
        return head.num_classes if isinstance(head, HeadBlock) else int(head.weight.shape[0])

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes, in the order of the logits; training and adapters give them, None is unknown.

        Data whose classes have other names is refused. Set them where you know better: ``model.classes = None``.
        """
        return task_of(self).classes

    @classes.setter
    def classes(self, names: Sequence[str] | None) -> None:
        if names is not None and len(names) != self.num_classes:
            raise ValueError(f"classes must name {self.num_classes} classes, one a logit; got {len(names)}")
        note_task(self, replace(task_of(self), classes=None if names is None else tuple(names)))

    @property
    def sites(self) -> tuple[Site, ...]:
        """Ends of the residual branches, in forward order; empty where the family is unknown."""
        return find_sites(self.module, self._sites, self._example())

    def print_trainable_parameters(self) -> None:
        """Print how many parameters train, how many there are, and their share, as peft does."""
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in self.parameters()]
        count, trained = sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)
        print(  # noqa: T201
            f"trainable params: {trained:,} || all params: {count:,} || trainable%: {100 * trained / max(count, 1):.4f}"
        )

    @property
    def fingerprint(self) -> str:
        """Digest of the architecture and of every weight and buffer outside the head."""
        return fingerprint(self.architecture, tensor_digests(self.module.state_dict(), self.head))

    def beside(self, head: nn.Module) -> "Backbone":
        """The same classifier with another head, in place of its own; all other layers and all tensors are shared.

        Only the modules that hold the head are others, with modes of their own: switch them too.
        """
        old_head = self.module.get_submodule(self.head)
        shared: list[Any] = [
            part for part in self.modules() if all(inner is not old_head for inner in part.modules())
        ]
        shared += [*self.parameters(), *self.buffers()]
        twin = copy.deepcopy(self, {id(old_head): head} | {id(item): item for item in shared})
        twin._head_is_open = False
        return twin

    def _example(self, size: ImageSize | None = None) -> Tensor:
        """A blank image as the network takes it."""
        shape = (1, self.mean.shape[1], *pair(size or self.image_size))
        return torch.zeros(shape, dtype=dtype_of(self.module), device=self.mean.device)

    def _check_size(self) -> None:
        """Raise ValueError if the network fails on a blank image; many take squares only."""
        try:
            with torch.random.fork_rng():
                laid_out(self.module, (), self._example())
        except Exception as error:  # whatever a model raises
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ValueError(
                f"{type(self.module).__name__} takes no images of img_size={self.image_size}, (height, width); choose "
                f"another, such as a square ({reason})"
            ) from error

    def _check_head(self, example: Tensor) -> None:
        """Raise ValueError if the head does not make the logits alone."""
        try:
            made_by = heads(self.module, self.head, lambda output: _checked(logits_of(output)), example)
        except Exception:  # of a module that takes other images or returns no logits; its first use tells
            return
        name = type(self.module).__name__
        if self.head not in made_by:
            raise ValueError(
                f"the logits of this {name} come from {made_by[0]!r}, not from {self.head!r}; name it with head="
            )
        if len(made_by) > 1:
            raise ValueError(
                f"{name} adds up the heads {' and '.join(map(repr, made_by))}, of which a Backbone would train one; take "
                "the model with one head, or average their weights into one layer"
            )
        self._head_is_open = False


def in_order(images: Tensor, order: Sequence[int]) -> Tensor:
    """The channels of ``images`` in this order; not by an index, whose copy to an accelerator would wait for it."""
    return torch.stack([images[:, channel] for channel in order], dim=1)


def network_of(model: nn.Module) -> nn.Module:
    """The network inside a Backbone, without its normalisation; any other module as it is."""
    return model.module if isinstance(model, Backbone) else model


def task_of(model: nn.Module) -> Task:
    """What ``model``, or the one that it wraps, was trained for."""
    return next((part.__dict__[_TASK] for part in model.modules() if _TASK in part.__dict__), Task())


def note_task(model: nn.Module, task: Task) -> None:
    """Note what ``model`` is trained for; a copy of the model has a note of its own."""
    network = network_of(model)
    network.__dict__.pop(_TASK, None)
    if task != Task():
        network.__dict__[_TASK] = task


def logits_of(output: Any) -> Tensor:
    """The logits in what a classifier returned: a tensor, an object or a mapping that has them, or a tuple that begins so.

    Raises:
        ValueError: there are none, or several.
    """
    if isinstance(output, Tensor):
        return output
    # PP-LCNet of transformers calls its logits a hidden state.
    named = [_named(output, name) for name in ("logits", "last_hidden_state")]
    candidates = [value for value in named if value is not None][:1]
    logits, *others = candidates or (output if isinstance(output, tuple) and output else (None,))
    if any(_alike(logits, other) for other in others):
        raise ValueError(
            f"a classifier must return one tensor of logits; this one returned several of shape {tuple(logits.shape)}: "
            "wrap it in a module that returns the one to use"
        )
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"the model must return logits (batch, classes), got a {type(output).__name__}; {_NO_CLASSIFIER}"
        )
    return logits


_NO_CLASSIFIER = "a model of detection, segmentation or features needs a wrapper that returns logits"


def check_scores(logits: Tensor) -> None:
    """Refuse what is not (batch, classes) or not floating point: classes or votes, which a cast would hide.

    Raises:
        ValueError: the shape or the dtype is another.
    """
    if logits.ndim != 2:
        got = f"shape {tuple(logits.shape)}"
        raise ValueError(f"the model must return logits (batch, classes), got {got}; {_NO_CLASSIFIER}")
    if not logits.is_floating_point():
        raise ValueError(f"the model must return floating-point logits, got {logits.dtype}; {_NO_CLASSIFIER}")


def _checked(logits: Tensor) -> Tensor:
    """``logits`` in float32 at least, if they are (batch, classes)."""
    check_scores(logits)
    return logits.float() if logits.element_size() < 4 else logits


def _named(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def _alike(first: Any, other: Any) -> bool:
    tensors = isinstance(first, Tensor) and isinstance(other, Tensor)
    return tensors and first.shape == other.shape and first.ndim == 2


def answer(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (batch, classes), at least in float32, of any classifier of images in [0, 1], in whatever precision it is."""
    # A Backbone casts them itself, and exactly.
    if not any(isinstance(part, Backbone) for part in model.modules()):
        images = images.to(dtype_of(model))
    return _checked(logits_of(model(images)))


def dtype_of(module: nn.Module) -> torch.dtype:
    """The precision of a network: that of its first parameters."""
    return next((tensor.dtype for tensor in module.parameters() if tensor.is_floating_point()), torch.float32)


def written(values: Tensor) -> list[float]:
    """Float32 numbers as they were written down, so that 0.485 is 0.485."""
    return [float(str(np.float32(value))) for value in values.flatten().tolist()]


def find_head(module: nn.Module, head: str | None) -> str:
    """Dotted name of the classifier: the one given, timm's own record, or the last ``nn.Linear``."""
    names = dict(module.named_modules())
    every = dict(module.named_modules(remove_duplicate=False))
    if head is None:
        recorded = getattr(module, "pretrained_cfg", None) or {}
        head = recorded.get("classifier")
        if isinstance(head, list | tuple):
            raise ValueError(
                f"{type(module).__name__} has the heads {head}; name the one to train with head="
            )
        if not isinstance(head, str) or head not in every:
            head = next((name for name in reversed(names) if isinstance(names[name], nn.Linear)), "")
    # A layer that has several names goes by the first.
    head = next((name for name, part in names.items() if part is every.get(head)), head)
    if not isinstance(names.get(head), nn.Linear | nn.Conv2d):
        layers = [name for name, part in names.items() if isinstance(part, nn.Linear | nn.Conv2d)]
        raise ValueError(
            f"head must name a Linear or Conv2d layer; got {head!r}. The last ones: {', '.join(layers[-5:])}"
        )
    return head


def architecture_of(module: nn.Module) -> str:
    """Name that identifies the architecture in adapter files: timm's, or the class and size of a transformers model."""
    recorded = getattr(module, "pretrained_cfg", None) or {}
    if recorded.get("architecture"):
        return f"timm:{recorded['architecture']}"
    model_type = getattr(getattr(module, "config", None), "model_type", None)
    return f"hf:{model_type}" if model_type else type(module).__name__


def recorded_size(module: nn.Module) -> Any:
    """Size in pixels of the images that a model of timm or transformers is made for."""
    config = getattr(module, "config", None)
    recorded: Any = getattr(module, "pretrained_cfg", None) or {}
    size: Any = getattr(getattr(module, "patch_embed", None), "img_size", None)
    size = size or getattr(config, "image_size", None)
    size = size or getattr(getattr(config, "vision_config", None), "image_size", None)
    size = size or tuple(recorded.get("input_size") or ())[-2:] or None
    return tuple(size) if isinstance(size, list) else size


def inside(key: str, prefix: str) -> bool:
    """Whether ``key`` is the module ``prefix`` or lies in it; never a bare string prefix."""
    return key == prefix or key.startswith(prefix + ".")


def tensor_digests(state: StateDict, head: str | None = None) -> dict[str, str]:
    """A short digest (64 bits) of each tensor by name, without those of ``head``, whatever their names."""
    of_head = {_memory(tensor) for key, tensor in state.items() if head is not None and inside(key, head)}
    return {
        key: digest(tensor)
        for key, tensor in state.items()
        if _memory(tensor) not in of_head and not key.endswith("num_batches_tracked")
    }


def other_names(state: StateDict, names: Iterable[str]) -> set[str]:
    """All names in ``state`` of the tensors that have one of ``names``, as tied ones have."""
    places = {_memory(state[name]) for name in names if name in state}
    return {name for name, tensor in state.items() if _memory(tensor) in places}


def _memory(tensor: Tensor) -> tuple[object, ...]:
    """Equal for tensors that are one; those without memory, on "meta" or empty, are all their own."""
    return (tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride())


def digest(tensor: Tensor) -> str:
    """64 bits of type, shape and numbers."""
    if tensor.is_meta:
        raise ValueError("the model is on the meta device and has no values; load its weights first")
    data = tensor.detach().to("cpu").contiguous()
    hashed = hashlib.blake2b(f"{data.dtype}{tuple(data.shape)}".encode(), digest_size=8)
    hashed.update(data.view(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def seal(text: str, tensors: Mapping[str, Tensor]) -> str:
    """A digest of a text and of all tensors beside it in a file, by which a change of either is seen."""
    return fingerprint(text, {name: digest(value) for name, value in tensors.items()})


def fingerprint(architecture: str, digests: Mapping[str, str]) -> str:
    """One digest of the architecture and its tensors' digests."""
    lines = [architecture, *(f"{key}={digests[key]}" for key in sorted(digests))]
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()
