"""AdaptFormer: a narrow bottleneck beside each MLP (Chen et al. 2022, https://arxiv.org/abs/2205.13535)."""

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import nn

from paretune._values import later
from paretune.strategies.adapter import Adapter
from paretune.strategies.mechanics.base import Anatomy, Strategy


@dataclass(frozen=True)
class AdaptFormer(Strategy):
    """Train s · up(relu(down(z))) beside each MLP: MLP(LN(x)) + s · up(relu(down(z))), which is added to the stream x.

    ``down`` starts as He et al. draw it (uniform), ``up`` and both biases at zero, so that the start is the base. It is an
    :class:`~paretune.Adapter`.

    Args:
        width: of the bottleneck.
        scale: s, above 0.
        reads: z. ``"stream"`` is x itself, before the norm, as in the authors' code (ShoufaChen/AdaptFormer); for ViT, DeiT,
            DINOv2, BEiT, EVA-02 and Swin. ``"input"`` is LN(x), the input of the MLP, as in equation 2 of the paper; in
            every family whose MLPs are known.
        dropout: in the bottleneck while training, at least 0 and below 1; the authors' code has 0.1.
    """

    _: KW_ONLY
    width: int = 64
    scale: float = 0.1
    reads: Literal["stream", "input"] = "stream"
    dropout: float = later(0.0)

    why_not_mergeable: ClassVar[str] = Adapter.why_not_mergeable

    def __post_init__(self) -> None:
        super().__post_init__()
        self._adapter()  # checks the numbers

    def _adapter(self) -> Adapter:
        of_width = partial(
            Adapter,
            activation="relu",
            width=self.width,
            scale=self.scale,
            dropout=self.dropout,
            where=self.where,
        )
        return (
            of_width(style="parallel")
            if self.reads == "input"
            else of_width(style="pfeiffer", reads="stream")
        )

    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Insert one bottleneck an MLP.

        Raises:
            ValueError: no MLP is known in ``where``, or not the stream in front of it.
        """
        return self._adapter().install(module, anatomy)
