"""How much each weight of a model matters for a task, before anything trains; :class:`~paretune.strategies.Sparse` asks."""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, normalize

from paretune.backbones.backbone import Backbone, logits_of
from paretune.backbones.modes import modes_kept
from paretune.data.image_split import ImageSplit

Score = Literal["gradient", "sensitivity", "adversarial", "random"]
#: What a choice may look at: a split, or images (batch, channels, height, width) in [0, 1] and labels (batch,).
Examples = ImageSplit | tuple[Tensor, Tensor]
#: Called with a model, images and labels, and with ``seed=``; returns attacked images.
Attacker = Callable[..., Tensor]

BATCH = 64
TEMPERATURE = 0.07  # of the authors of GPS


def scored_by_gradients(
    backbone: Backbone,
    weights: Mapping[str, nn.Parameter],
    score: Score,
    images: Tensor,
    labels: Tensor,
    attack: Attacker | None,
    seed: int,
) -> dict[str, Tensor]:
    """A score of at least 0 for each number of ``weights``, float32 on the CPU, in evaluation mode; nothing changes.

    - ``"gradient"``: the size of the gradient of the supervised contrastive loss of the features, summed over batches of 64.
      The head, which is fresh as a rule, has no part in it.
    - ``"sensitivity"``: the sum over images of the squared gradient of the cross-entropy, through the head that there is.
    - ``"adversarial"``: the same on attacked images.
    """
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    leaves = {names[id(weight)]: weight.detach().requires_grad_() for weight in weights.values()}
    totals = [torch.zeros_like(leaf, dtype=torch.float32) for leaf in leaves.values()]
    contrasted = score == "gradient"
    with modes_kept(backbone):
        backbone.eval()
        try:
            for batch, (some, their) in enumerate(
                zip(*(torch.split(part, BATCH) for part in (images, labels)), strict=True)
            ):
                if attack is not None and score == "adversarial":
                    some = attack(backbone, some, their, seed=seed + batch)
                with torch.enable_grad():
                    for loss in (_contrasted if contrasted else _each)(backbone, leaves, some, their):
                        slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
                        for total, slope in zip(totals, slopes, strict=True):
                            if slope is not None:
                                total += slope if contrasted else slope.float().square()
        finally:
            backbone.train()  # TinyViT and LeViT keep what they compute from parameters until training begins
    return {name: total.abs().cpu() for name, total in zip(weights, totals, strict=True)}


def _each(
    backbone: Backbone, leaves: Mapping[str, Tensor], images: Tensor, labels: Tensor
) -> Iterable[Tensor]:
    """The cross-entropy of one image after the other."""
    for image, label in zip(torch.split(images, 1), torch.split(labels, 1), strict=True):
        yield cross_entropy(logits_of(functional_call(backbone, dict(leaves), (image,))).float(), label)


def _contrasted(
    backbone: Backbone, leaves: Mapping[str, Tensor], images: Tensor, labels: Tensor
) -> Iterable[Tensor]:
    """The supervised contrastive loss of what enters the head."""
    seen: list[Tensor] = []
    head = backbone.module.get_submodule(backbone.head)
    with head.register_forward_pre_hook(lambda _head, args: seen.append(args[0])):
        functional_call(backbone, dict(leaves), (images,))
    yield contrastive_loss(seen[0], labels)


def contrastive_loss(features: Tensor, labels: Tensor) -> Tensor:
    """Sum over images of the supervised contrastive loss (Khosla et al. 2020, https://arxiv.org/abs/2004.11362, equation 2).

    The positives of an image are the others of its class in the batch, of which there is one view; an image without any
    counts for nothing.

    Args:
        features: (batch, …).
        labels: (batch,).
    """
    z = normalize(features.flatten(1).float(), dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    products = z @ z.T / TEMPERATURE
    logs = products - products.masked_fill(itself, -torch.inf).logsumexp(dim=1, keepdim=True)
    positive = (labels[:, None] == labels) & ~itself
    return -((logs * positive).sum(1) / positive.sum(1).clamp(min=1)).sum()


def best_in_each_row(scores: Mapping[str, Tensor], budget: int) -> dict[str, Tensor]:
    """Scores by which the ``budget`` best are those that come first in their row; of the last that fit, the largest.

    A row of a weight (out, …) is a neuron. With a budget of K for each, these are the K largest scores of each.

    Args:
        scores: at least 0; what is 0 is not chosen.
        budget: at most as many as are above 0.
    """
    rows = {name: score.flatten(1) for name, score in scores.items()}
    above = torch.cat([score.count_nonzero(dim=1) for score in rows.values()])
    least, most = 1, int(above.max())
    while least < most:  # the fewest of a row with which the budget is reached
        middle = (least + most) // 2
        if int(above.clamp(max=middle).sum()) >= budget:
            most = middle
        else:
            least = middle + 1
    ranked = {}
    for name, score in rows.items():
        best, places = score.topk(min(least, score.shape[1]), dim=1)
        best = best.clone()
        best[:, : least - 1][best[:, : least - 1] > 0] = torch.inf
        ranked[name] = torch.zeros_like(score).scatter_(1, places, best).view_as(scores[name])
    return ranked


def best(scores: Mapping[str, Tensor], budget: int) -> dict[str, Tensor]:
    """Flat places of the ``budget`` largest of all ``scores``, ascending, where there are any; of equals, the first."""
    flat = torch.cat([score.flatten() for score in scores.values()])
    last = flat.topk(budget, sorted=False).values.min()
    chosen = flat > last
    chosen[(flat == last).nonzero()[: budget - int(chosen.sum()), 0]] = True
    parts = torch.split(chosen, [score.numel() for score in scores.values()])
    places = {name: part.nonzero()[:, 0] for name, part in zip(scores, parts, strict=True)}
    return {name: place for name, place in places.items() if len(place)}
