"""What a module at the end of a residual branch may read besides the branch: the stream that the branch is added to."""

import threading
from typing import Any, Literal

import torch
from torch import Tensor, nn

from paretune.backbones.sites import Site
from paretune.strategies.mechanics.base import Inserted

Reads = Literal[
    "branch", "stream", "sum", "input"
]  # the last is the parallel adapter's, not for a user to choose

# Blocks whose branches begin with a norm of the stream, and the names of those norms: in front of attention and of the MLP.
# None in front of an attention that sees the stream in other shapes than the site does (windows).
_NORMS = {
    "timm.models.vision_transformer.Block": ("norm1", "norm2"),
    "timm.models.beit.Block": ("norm1", "norm2"),
    "timm.models.eva.EvaBlock": ("norm1", "norm2"),
    "timm.models.swin_transformer.SwinTransformerBlock": ("norm1", "norm2"),
    "torchvision.models.vision_transformer.EncoderBlock": ("ln_1", "ln_2"),
    "torchvision.models.swin_transformer.SwinTransformerBlock": ("norm1", "norm2"),
    "transformers.models.vit.modeling_vit.ViTLayer": ("layernorm_before", "layernorm_after"),
    "transformers.models.deit.modeling_deit.DeiTLayer": ("layernorm_before", "layernorm_after"),
    "transformers.models.dinov2.modeling_dinov2.Dinov2Layer": ("norm1", "norm2"),
    "transformers.models.beit.modeling_beit.BeitLayer": ("layernorm_before", "layernorm_after"),
    "transformers.models.swin.modeling_swin.SwinLayer": ("", "layernorm_after"),
}


class Reader(Inserted):
    """An inserted module that changes a branch h by a function of h, of the stream x, of h + x, or of the module's input.

    ``forward(read, branch)`` returns the changed branch; both have its shape.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: Reads = "branch"
        self.tap: StreamTap | None = None

    def attach_reading(self, module: nn.Module, site: Site, reads: Reads) -> None:
        """As :meth:`attach`, and let it read what ``reads`` says.

        Raises:
            ValueError: it shall read the stream of a block that is not known to begin with a norm.
        """
        self.reads = reads
        self.attach(module, site)
        if reads in ("stream", "sum"):
            norm = module.get_submodule(_norm_before(site, module))
            self.tap = StreamTap()
            norm.add_module(f"{self.NAME}_stream", self.tap)
            self.tap._hook = norm.register_forward_pre_hook(self.tap.keep).id

    def change_input(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook."""
        return (self(self._read(args, args[0]), args[0]), *args[1:])

    def changed(self, args: tuple[Any, ...], branch: Tensor) -> Tensor:
        """As in :class:`Inserted`, by what it reads."""
        result: Tensor = self(self._read(args, branch), branch)
        return result

    def _read(self, args: tuple[Any, ...], branch: Tensor) -> Tensor:
        if self.reads == "input":
            given: Tensor = args[0]
            return given
        if self.tap is None:
            return branch
        # The attack copy of a model may compute the class token alone, which comes first, in its last block.
        stream = self.tap.take()[:, : branch.shape[1]]
        return stream if self.reads == "stream" else branch + stream


class StreamTap(Inserted):
    """Keeps what enters a norm until the module at the end of the branch takes it, in the same forward pass.

    Of each thread apart, because several may be in the model at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._streams: dict[int, Tensor] = {}

    def keep(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        """Forward pre-hook of the norm."""
        self._streams[_thread()] = args[0]

    def take(self) -> Tensor:
        """The stream, which is forgotten: a kept activation would hold memory, and could not be deep-copied."""
        return self._streams.pop(_thread())

    def __getstate__(self) -> dict[str, Any]:
        """Copies begin without a stream, whoever is in the model meanwhile."""
        return self.__dict__ | {"_streams": {}}


def _thread() -> int:
    """Which thread this is; a compiled graph has no such state between its calls."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


def _norm_before(site: Site, module: nn.Module) -> str:
    block = module.get_submodule(site.block)
    kind = f"{type(block).__module__}.{type(block).__qualname__}"
    known = site.block and site.branch != "conv"
    norm = _NORMS.get(kind, ("", ""))[site.branch == "mlp"] if known else ""
    if not norm:
        raise ValueError(
            f"reads: the residual stream in front of {site.module!r} is not known in {type(block).__name__}, only for ViT, "
            "DeiT, DINOv2, BEiT, EVA-02 and Swin; give reads= another value"
        )
    return f"{site.block}.{norm}"
