"""A head that is not trained: the cosine similarity of the features to one given embedding a class."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paretune.backbones.backbone import Backbone, Task, note_task
from paretune.backbones.features import without_head
from paretune.backbones.modes import RECORD


class PrototypeHead(nn.Module):
    """Logits s · cos(x, e_c) of features x (batch, features), for the embedding e_c of each class.

    Args:
        embeddings: (classes, features); only their directions count.
        scale: s.
    """

    prototypes: Tensor
    scale: Tensor

    def __init__(self, embeddings: Tensor, scale: float) -> None:
        super().__init__()
        self.register_buffer("prototypes", F.normalize(embeddings.detach().float(), dim=1))
        self.register_buffer("scale", torch.tensor(float(scale)))

    @property
    def weight(self) -> Tensor:
        """(classes, features), as a Linear layer has them."""
        return self.prototypes

    def forward(self, features: Tensor) -> Tensor:
        """(batch, classes)."""
        return self.scale * F.linear(F.normalize(features, dim=1), self.prototypes)


def prototype_head(
    backbone: Backbone,
    embeddings: Tensor,
    *,
    temperature: float = 0.01,
    classes: Sequence[str] | None = None,
) -> Backbone:
    """Give ``backbone`` a head of class embeddings that stay as they are, in place, before :func:`~paretune.adapt`.

    The logits are the cosine similarities of the features to the embeddings over ``temperature``, as CLIP classifies by
    texts (Radford et al. 2021, https://arxiv.org/abs/2103.00020, figure 3). With that head,
    :class:`~paretune.AdversarialTraining` is TeCoA (Mao et al. 2023, "Understanding Zero-Shot Adversarial Robustness for
    Large-Scale Models", https://arxiv.org/abs/2212.07016), and what is trained, attacked, measured and saved is one model.
    Adapter files hold the embeddings too, and load onto a backbone that has such a head of as many classes.

    Example:
        >>> import timm, torch
        >>> from paretune import Backbone
        >>> from paretune.backbones import prototype_head
        >>> model = Backbone(timm.create_model("test_vit", num_classes=2))
        >>> prototype_head(model, torch.randn(5, 64)).num_classes
        5

    Args:
        backbone: without an adapter. Its head, a Linear layer, is replaced.
        embeddings: (classes, features), for example CLIP's of "a photo of a CLASS", in the space of what enters the head.
            An image tower that ends in a projection is given a head first:
            ``Backbone(nn.Sequential(tower, nn.Linear(512, classes)))``.
        temperature: above 0; CLIP ends at 0.01.
        classes: names, in the order of the embeddings; None for unknown.

    Raises:
        ValueError: the head is no Linear layer, the embeddings are not one a class for these features, the model is
            adapted, or the network does more with what its head returns than return it.
    """
    head: Any = backbone.module.get_submodule(backbone.head)
    if RECORD in vars(backbone.module):
        raise ValueError("the model carries an adapter; give it its head before adapt")
    if not isinstance(head, nn.Linear | PrototypeHead):
        raise ValueError(f"the head {backbone.head!r} must be a Linear layer, got {type(head).__name__}")
    features = head.weight.shape[1]
    if embeddings.ndim != 2 or embeddings.shape[1] != features or len(embeddings) < 2:
        raise ValueError(
            f"embeddings must be (classes, {features}) of at least 2 classes, as {features} features enter the head "
            f"{backbone.head!r}; got {tuple(embeddings.shape)}"
        )
    if not embeddings.isfinite().all() or not embeddings.any(dim=1).all():
        raise ValueError("embeddings must be finite, and none of them zero, which has no direction")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be finite and above 0, got {temperature}")
    if classes is not None and len(classes) != len(embeddings):
        raise ValueError(f"classes must name {len(embeddings)} classes, one an embedding; got {len(classes)}")
    without_head(backbone)  # for its errors
    new_head = PrototypeHead(embeddings, 1 / temperature).to(head.weight)
    backbone.module.set_submodule(backbone.head, new_head.train(head.training))
    backbone._head_is_open = False  # nor has it another one now
    note_task(backbone, Task(None if classes is None else tuple(classes)))
    return backbone
