"""Visual prompts: a learned border of the image, or learned tokens that join those of the patches.

The border: Bahng et al. 2022, https://arxiv.org/abs/2203.17274, section 3.3. The tokens, called VPT: Jia et al. 2022,
https://arxiv.org/abs/2203.12119, equations 4 to 7.
"""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from paretune.backbones.passing import blank_image, one_pass
from paretune.backbones.sites import Site, candidates
from paretune.data.sizes import ImageSize, pair
from paretune.strategies.mechanics.base import Anatomy, Inserted, Strategy, parameter_names
from paretune.strategies.mechanics.selection import blocks


@dataclass(frozen=True)
class VisualPrompt(Strategy):
    """Train what is shown to the model beside the image.

    Args:
        kind: ``"padding"`` adds a border of learned values to the normalised image; it starts at zero. ``"shallow"`` gives
            the first block of a vision transformer further tokens (VPT-shallow), ``"deep"`` gives each block its own in
            their place (VPT-deep).
        size: width of the border in pixels, or number of tokens.
        dropout: probability of dropping a number of a token while training, at least 0 and below 1; the authors use 0.1.
            Attacks and evaluation have none.
    """

    _: KW_ONLY
    kind: Literal["padding", "shallow", "deep"] = "padding"
    size: int = 10
    dropout: float = 0.0

    learning_rate: ClassVar[float] = 1e-2
    why_everywhere: ClassVar[str] = "a prompt is shown to the whole model"
    why_not_mergeable: ClassVar[str] = "a prompt is a part of the input, not of a weight"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1 or int(self.size) != self.size:
            raise ValueError(f"size must be a whole number of at least 1, got {self.size}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.dropout and self.kind == "padding":
            raise ValueError(f"dropout={self.dropout} is of tokens; use kind='shallow' or kind='deep'")

    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Insert the border, or tokens before the first (or each) block and their removal after the last.

        Raises:
            ValueError: the border leaves nothing of the image, or the model takes no further tokens.
        """
        if self.kind == "padding":
            return self._pad(module, anatomy)
        some = next(module.parameters())
        known = self._blocks(module, anatomy)
        new: list[PromptMask] = []
        for index, (block, width) in enumerate(known.items()):
            prompt = PromptMask(self.size)
            if index == 0 or self.kind == "deep":
                prompt = PromptTokens(self.size, width, _patch(module), self.dropout, first=index == 0)
            new.append(prompt.to(some.device, some.dtype))
            prompt.attach(module, Site(block, "input", "attention", width, -1))
        PromptEnd(self.size).attach(module, Site(block, "output", "attention", width, -1))
        if anatomy.image_size is not None:
            _try(module, anatomy, next(iter(known)))
        return parameter_names(module, new)

    def _pad(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        if anatomy.image_size is None or 2 * self.size >= min(pair(anatomy.image_size)):
            raise ValueError(
                f"VisualPrompt: size={self.size} must leave some of the image of {anatomy.image_size} pixels; give a "
                "smaller size, or wrap the model: Backbone(module, image_size=...)"
            )
        some = next(module.parameters())
        border = PromptBorder(anatomy.channels, anatomy.image_size, self.size).to(some.device, some.dtype)
        border.attach(module, Site("", "input", "conv", anatomy.channels, 1))
        return parameter_names(module, [border])

    def _blocks(self, module: nn.Module, anatomy: Anatomy) -> dict[str, int]:
        """Names and widths of the blocks of a vision transformer."""
        widths = {site.block or site.module: site.width for site in anatomy.sites if site.channel_axis == -1}
        lists = {block.rpartition(".")[0] for block in widths}
        kinds = {site.branch for site in anatomy.sites}
        attends = {site.block for site in anatomy.sites if site.branch == "attention"}
        plain = (
            list(widths) == blocks(anatomy.sites) and kinds == {"attention", "mlp"} and attends == set(widths)
        )
        if not plain or len(lists) != 1 or len(set(widths.values())) != 1:
            raise ValueError(
                f"VisualPrompt: kind={self.kind!r} needs a vision transformer, one list of blocks with attention and MLP of "
                f"one width, which {type(module).__name__} is not known to be; use kind='padding'; {candidates(module)}"
            )
        return widths


def _patch(module: nn.Module) -> int:
    """Pixels in a patch, for the scale of the first values."""
    conv = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    return math.prod(conv.kernel_size) if conv is not None else 256


def _try(module: nn.Module, anatomy: Anatomy, first: str) -> None:
    """Raise if the model fails on a blank image, as attention with a bias or a rotation for each place does.

    Or if the ``first`` block gets its tokens as (tokens, batch, width), to which a prompt would be another image.
    """
    assert anatomy.image_size is not None
    shapes: list[torch.Size] = []
    block = module.get_submodule(first)
    hook = block.register_forward_pre_hook(lambda _module, args: shapes.append(args[0].shape))
    try:
        with hook:
            one_pass(module, blank_image(module, anatomy.channels, anatomy.image_size))
        if shapes[0][0] != 1:
            raise ValueError(f"one image enters {first!r} as {tuple(shapes[0])}")
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"VisualPrompt: the blocks of {type(module).__name__} take no further tokens ({reason}); use kind='padding'"
        ) from error


class PromptBorder(Inserted):
    """Adds learned values to the outermost pixels.

    Shapes: ``rows`` (2, channels, size, width of the image) above and below, ``columns`` (2, channels,
    height - 2 size, size) left and right between them.
    """

    NAME = "prompt"

    def __init__(self, channels: int, image_size: ImageSize, size: int) -> None:
        super().__init__()
        height, width = pair(image_size)
        self.rows = nn.Parameter(torch.zeros(2, channels, size, width))
        self.columns = nn.Parameter(torch.zeros(2, channels, height - 2 * size, size))

    def forward(self, images: Tensor) -> Tensor:
        """Prompted images (batch, channels, height, width).

        Raises:
            ValueError: they have another size than the border was made for.
        """
        size, width = self.rows.shape[-2:]
        height = self.columns.shape[-2] + 2 * size
        if images.shape[-2:] != (height, width):
            raise ValueError(
                f"the prompt is for images of {height} × {width} pixels; got {tuple(images.shape[-2:])}"
            )
        inside = self.rows.new_zeros(*self.columns.shape[1:3], width - 2 * size)
        middle = torch.cat([self.columns[0], inside, self.columns[1]], dim=-1)
        return images + torch.cat([self.rows[0], middle, self.rows[1]], dim=-2).to(images.dtype)


class PromptMask(Inserted):
    """Lets the tokens of a block attend to the prompt, which is the last of them, where the block is given a mask.

    transformers gives its blocks one that hides nothing when a graph is exported.
    """

    NAME = "prompt"

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def change_input(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook."""
        x = self(args[0])
        return (x, *(self._widened(argument, x.shape[1] - self.number) for argument in args[1:]))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width), as it is."""
        return x

    def _widened(self, given: Any, tokens: int) -> Any:
        """A mask (batch, 1, tokens, tokens), with the prompt's rows and columns; anything else as it is."""
        if not isinstance(given, Tensor) or given.ndim != 4 or given.shape[1:] != (1, tokens, tokens):
            return given
        shown = given.dtype == torch.bool  # True shows, and so does adding zero
        return nn.functional.pad(given, (0, self.number, 0, self.number), value=shown)


class PromptTokens(PromptMask):
    """Appends learned tokens to those that enter a block, or puts them in the place of those appended before.

    The authors insert them behind the class token; attention is the same in either order.

    Shape of ``tokens``: (number, width). First values as the authors draw them: uniform with the bound of Xavier for
    (pixels of a patch · 3, width).
    """

    def __init__(self, number: int, width: int, patch: int, dropout: float, *, first: bool) -> None:
        super().__init__(number)
        self.dropout = dropout
        bound = math.sqrt(6 / (3 * patch + width))
        self.tokens = nn.Parameter(torch.empty(number, width).uniform_(-bound, bound))
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to the same with the prompt as its last tokens."""
        kept = x if self.first else x[:, : -self.number]
        tokens = self.tokens.to(x.dtype).expand(x.shape[0], -1, -1)
        if self.training and self.dropout:
            tokens = nn.functional.dropout(tokens, self.dropout)
        return torch.cat([kept, tokens], dim=1)


class PromptEnd(Inserted):
    """Drops the prompt behind the last block."""

    NAME = "prompt_end"

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) without the last ``number`` tokens."""
        return x[:, : -self.number]
