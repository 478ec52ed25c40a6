"""The same function with less work: patches cut by a matrix product, activations that copy nothing, and a last block for
the one token that is read.
"""

import functools
import logging
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from paretune.attacks.copy.equality import Forward, difference

logger = logging.getLogger(__name__)


class PatchConv(nn.Conv2d):
    """A convolution whose windows touch but do not overlap, computed as the matrix product that it is.

    Convolution kernels are slow at this; ``benchmarks/attacks.py --only profile`` shows where a gradient step goes.
    """

    def forward(self, images: Tensor) -> Tensor:
        """(batch, in, height, width) to (batch, out, height / patch, width / patch)."""
        batch, channels, height, width = images.shape
        rows, columns = height // self.kernel_size[0], width // self.kernel_size[1]
        # A convolution ignores what does not fill a window.
        images = images[:, :, : rows * self.kernel_size[0], : columns * self.kernel_size[1]]
        patches = images.reshape(batch, channels, rows, self.kernel_size[0], columns, self.kernel_size[1])
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)  # (batch, rows, columns, channels · window)
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def patches_as_products(module: nn.Module) -> None:
    """Turn each convolution of ``module`` that cuts patches into a :class:`PatchConv`, in place."""
    for part in module.modules():
        if (
            type(part) is nn.Conv2d
            and part.kernel_size == part.stride != (1, 1)
            and part.padding == (0, 0)
            and part.dilation == (1, 1)
            and part.groups == 1
        ):
            part.__class__ = PatchConv


def activations_out_of_place(module: nn.Module, image: Tensor, forward: Forward) -> None:
    """Let activations write to a new tensor where working in place makes autograd copy their input first.

    That is so for those whose derivative is a function of the input (ReLU's is one of the output). Done only if the logits
    stay the same, because code may rely on a changed input.

    Args:
        module: a model in evaluation mode, changed in place.
        image: one input (1, channels, height, width) that it accepts.
        forward: runs a model on a batch and returns its logits.
    """

    def change(model: nn.Module) -> None:
        for part in model.modules():
            if isinstance(part, _COPYING) and part.inplace:
                part.inplace = False

    if any(isinstance(part, _COPYING) and part.inplace for part in module.modules()):
        problem = difference(module, change, image, forward)
        if problem:
            logger.debug("activations of the attack copy stay in place: %s", problem)
        else:
            change(module)


_COPYING = (nn.Hardtanh, nn.SiLU, nn.Hardswish, nn.Mish)  # nn.ReLU6 is a Hardtanh


def class_token_only(module: nn.Module, image: Tensor, forward: Forward) -> list[str]:
    """Where a classifier reads the class token alone, let its last block compute that token alone, in place.

    For the other tokens the last block needs keys and values, but no query, projection or MLP: five sixths of its work,
    in the forward and in the backward pass. Known for timm's vision transformers, and done only if the logits stay the
    same by :func:`~paretune.attacks.copy.equality.difference`.

    Args:
        module: a model in evaluation mode.
        image: one input (1, channels, height, width) that it accepts.
        forward: runs a model on a batch and returns its logits.

    Returns:
        Names of the blocks that were changed.
    """
    from timm.models.vision_transformer import VisionTransformer

    changed = []
    for name, part in module.named_modules():
        if isinstance(part, VisionTransformer) and part.global_pool == "token" and _is_known(part):
            last = f"{name}.blocks.{len(part.blocks) - 1}".lstrip(".")

            def shorten(model: nn.Module, last: str = last) -> None:
                _shorten(model.get_submodule(last))

            problem = difference(module, shorten, image, forward)
            if problem:
                logger.debug("%s of the attack copy stays as it is: %s", last, problem)
                continue
            shorten(module)
            changed.append(last)
    return changed


def _is_known(model: Any) -> bool:
    """Whether the last block is timm's own, and nothing watches the parts that see one token or are passed over."""
    from timm.models.vision_transformer import Attention, Block

    block: Any = model.blocks[-1]
    return (
        type(block) is Block
        and type(block.attn) is Attention
        and getattr(block.attn, "gate", None) is None
        and type(block.attn.qkv) is nn.Linear
        and not any(part._forward_hooks or part._forward_pre_hooks for part in (block, block.attn.qkv))
    )


def _shorten(block: Any) -> None:
    block.__class__, block.attn.__class__ = _class_token_types()


@functools.cache
def _class_token_types() -> tuple[type[nn.Module], type[nn.Module]]:
    """timm's block and attention with the class token as the only query; made here because timm is imported late."""
    from timm.models.vision_transformer import Attention, Block

    class ClassTokenBlock(Block):  # type: ignore[misc]
        def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
            x = x[:, :1] + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
            changed: Tensor = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
            return changed

    class ClassTokenAttention(Attention):  # type: ignore[misc]
        def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
            batch, tokens, _width = x.shape
            inner, bias = self.qkv.weight.shape[0] // 3, self.qkv.bias
            q = F.linear(x[:, :1], self.qkv.weight[:inner], None if bias is None else bias[:inner])
            kv = F.linear(x, self.qkv.weight[inner:], None if bias is None else bias[inner:])
            q = q.view(batch, 1, self.num_heads, -1).transpose(1, 2)  # (batch, heads, 1, width of a head)
            k, v = kv.view(batch, tokens, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            q, k = self.q_norm(q), self.k_norm(k)
            weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
            token = (weights @ v).reshape(batch, 1, inner)
            norm = getattr(self, "norm", None)  # timm before 1.0.20 had none
            out: Tensor = self.proj_drop(self.proj(token if norm is None else norm(token)))
            return out

    return ClassTokenBlock, ClassTokenAttention
