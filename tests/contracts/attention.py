"""Small networks whose attention modules hold their projections themselves, in every form that there is."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paretune import Backbone


class Encoder(nn.Module):
    """torch's own encoder, which in evaluation computes a whole layer in one kernel if the batch comes first."""

    def __init__(self, *, batch_first: bool = True, **options: Any) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, 8)
        layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=batch_first, **options)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.batch_first = batch_first
        self.head = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        x = self.stem(images).flatten(2).transpose(1, 2)
        x = self.encoder(x) if self.batch_first else self.encoder(x.transpose(0, 1)).transpose(0, 1)
        logits: Tensor = self.head(x.mean(1))
        return logits


class Pooler(nn.Module):
    """Learned queries that look at tokens; of another width, they have a projection each for queries, keys and values."""

    def __init__(self, width: int, **options: Any) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 8, 8)
        self.queries = nn.Parameter(torch.randn(3, 16))
        apart = {} if width == 16 else {"kdim": width, "vdim": width}
        self.attn = nn.MultiheadAttention(16, 2, batch_first=True, **apart, **options)
        self.head = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        x = self.stem(images).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.attn(self.queries.expand(len(x), -1, -1), x, x)[0].mean(1))
        return logits


class Attention(nn.Module):
    """As open_clip's own: ``in_proj_weight`` is a parameter, the output projection a layer that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(0.25 * torch.randn(48, 16))
        self.in_proj_bias = nn.Parameter(torch.zeros(48))
        self.out_proj = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (batch, tokens, width)."""
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        changed: Tensor = self.out_proj(F.scaled_dot_product_attention(q, k, v))
        return changed


class Unknown(nn.Module):
    """Projections under names that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.w_qkv = nn.Parameter(0.25 * torch.randn(48, 16))
        self.relative_position_bias_table = nn.Parameter(torch.randn(16, 16))
        self.proj = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (batch, tokens, width)."""
        q, k, v = F.linear(x, self.w_qkv).chunk(3, dim=-1)
        changed: Tensor = self.proj((q @ k.mT + self.relative_position_bias_table).softmax(-1) @ v)
        return changed


class Blocks(nn.Module):
    """Two blocks of attention and an MLP that is a row of layers."""

    def __init__(self, attention: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, 8)
        self.blocks = nn.ModuleList()
        for _ in range(2):
            block = nn.Module()
            block.attn, block.norm = attention(), nn.LayerNorm(16)
            block.mlp = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Dropout(0.0), nn.Linear(24, 16))
            self.blocks.append(block)
        self.head = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        x = self.stem(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            any_block: Any = block
            x = x + any_block.attn(any_block.norm(x))
            x = x + any_block.mlp(any_block.norm(x))
        logits: Tensor = self.head(x.mean(1))
        return logits


ATTENTION: dict[str, Callable[[], nn.Module]] = {
    "encoder": Encoder,
    "encoder, norm first": lambda: Encoder(norm_first=True),
    "encoder, tokens first": lambda: Encoder(batch_first=False),
    "pooler": lambda: Pooler(16),
    "pooler of another width": lambda: Pooler(12),
    "pooler with biases of keys and values": lambda: Pooler(16, add_bias_kv=True),
    "pooler without biases": lambda: Pooler(12, bias=False),
    "open_clip": lambda: Blocks(Attention),
    "unknown": lambda: Blocks(Unknown),
}


def make_attention(name: str) -> Backbone:
    """The network; always the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ATTENTION[name]()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return Backbone(net.eval(), image_size=32)
