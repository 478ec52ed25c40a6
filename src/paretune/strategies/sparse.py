"""Sparse tuning: single weights, chosen by what a score says of them.

GPS chooses by the gradient, as many for each neuron (Zhang et al. 2024, https://arxiv.org/abs/2312.10136, section 3); SPT by
the sensitivity, wherever it is highest (He et al. 2023, https://arxiv.org/abs/2303.08566, section 3.1). What trains is a
vector of differences, W[places] + values; nothing dense is stored.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from paretune.backbones.backbone import Backbone
from paretune.backbones.random import borrowed_randomness
from paretune.data.image_split import ImageSplit
from paretune.strategies.mechanics.adapting import anatomy_of, require_bare
from paretune.strategies.mechanics.base import Anatomy, Strategy, holders, parameter_names
from paretune.strategies.mechanics.keeping import KeptDelta
from paretune.strategies.mechanics.roles import matrices
from paretune.strategies.mechanics.scores import (
    Attacker,
    Examples,
    Score,
    best,
    best_in_each_row,
    scored_by_gradients,
)

_PLACES = "sparse_places"


@dataclass(frozen=True)
class Sparse(Strategy):
    """Train single weights of Linear and Conv2d layers; they merge exactly, and cost nothing after merging.

    Which ones is chosen on the bare model before training: :func:`~paretune.adapt` is given images for it, of which
    ``samples`` are drawn by its seed. The choice follows from model, images, attack and seed. It is saved with the
    adapter: the places and as many values, nothing dense. For an ``AdapterSet``, or to choose once for several seeds, put on
    what ``chosen_on`` returns.

    Example:
        >>> import paretune as pt
        >>> model = pt.load_backbone("timm:test_vit", num_classes=10, pretrained=False)
        >>> images, labels = torch.rand(8, 3, 160, 160), torch.arange(8)
        >>> sparse = pt.strategies.Sparse(budget=5000, score="adversarial")
        >>> model = pt.adapt(model, sparse, data=(images, labels), attack=pt.PGD(pt.Linf(4/255), steps=2))
        >>> sum(p.numel() for p in pt.strategies.trainable_parameters(model, head=False).values())
        5000

    Args:
        budget: how many weights train, a whole number; or below 1, this fraction of those in ``where``.
        score: what is chosen. ``"gradient"``: of each neuron as many weights, those with the largest gradients of the
            supervised contrastive loss of the features, in which the head has no part (GPS; the authors show two augmented
            views of each image, here there is one, and train every bias too). ``"sensitivity"``: the largest of all by the
            sum over images of the squared gradient of the cross-entropy (SPT without its structured part).
            ``"adversarial"``: the same on attacked images, for the weights that matter under attack. These two look through
            the head that the model has. A fresh one is random, as it is for the authors of SPT; train ``LinearProbe()``
            and merge it first for one that knows the task. ``"random"``: any, what a score has to beat; needs no images.
        samples: images that the score is taken of.
    """

    _: KW_ONLY
    budget: float = 0.01
    score: Score = "gradient"
    samples: int = 256

    learning_rate: ClassVar[float] = 1e-3
    why_alone: ClassVar[str] = "it is chosen on the bare model which weights it trains"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.budget > 0 or (self.budget >= 1 and self.budget % 1):
            raise ValueError(
                f"budget must be a whole number of weights, or a fraction of them above 0 and below 1; got {self.budget}"
            )
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")

    def __eq__(self, other: object) -> bool:
        """Whether both are configured alike and have chosen the same weights."""
        return isinstance(other, Sparse) and (repr(self), self._digest) == (repr(other), other._digest)

    def __hash__(self) -> int:
        return hash((repr(self), self._digest))

    @property
    def chosen(self) -> Mapping[str, Tensor] | None:
        """Flat places in each weight, ascending, by the name of its layer; None until they are chosen."""
        return self.__dict__.get("_chosen")

    @property
    def _digest(self) -> str:
        """Of what is chosen."""
        state = hashlib.sha256()
        for name, places in (self.chosen or {}).items():
            state.update(f"{name}:{len(places)}:".encode() + places.numpy().tobytes())
        return state.hexdigest()

    def _having(self, chosen: Mapping[str, Tensor]) -> Self:
        clone = dataclasses.replace(self)
        object.__setattr__(clone, "_chosen", dict(sorted(chosen.items())))
        return clone

    def chosen_on(
        self,
        backbone: Backbone,
        data: Examples | None = None,
        *,
        attack: Attacker | None = None,
        seed: int = 0,
    ) -> Self:
        """The same strategy with the weights that it trains, chosen on a bare ``backbone``, which stays as it is.

        Args:
            backbone: what it will be put on.
            data: the split to train on, or images (batch, channels, height, width) in [0, 1] with labels (batch,).
            attack: for ``"adversarial"``, such as ``PGD(Linf(4/255), steps=7)``.
            seed: of the draws of images and of the attack.

        Raises:
            ValueError: images or an attack are missing, labels are none of the model, or too few weights have a score.
        """
        if self.chosen is not None:
            return self
        require_bare(backbone)
        weights = self._weights(backbone.module, anatomy_of(backbone))
        with borrowed_randomness():
            torch.manual_seed(seed)
            if self.score == "random":
                scores = {
                    name: 1 - torch.rand(weight.shape, device="cpu") for name, weight in weights.items()
                }
            else:
                images, labels = self._drawn(backbone, data)
                if self.score == "adversarial" and attack is None:
                    raise ValueError(
                        "Sparse: score='adversarial' needs an attack: adapt(..., attack=PGD(Linf(4/255), steps=7))"
                    )
                scores = scored_by_gradients(backbone, weights, self.score, images, labels, attack, seed)
        count = self._count(weights)
        if not all(bool(score.isfinite().all()) for score in scores.values()):
            raise ValueError(f"Sparse: the {self.score} of some weights is NaN or infinite on these images")
        above = sum(int(score.count_nonzero()) for score in scores.values())
        if above < count:
            raise ValueError(
                f"Sparse: budget={self.budget:g} is {count:,} weights, and only {above:,} have a {self.score} other than 0 "
                "on these images; give more samples or a smaller budget (a head of zeros lets no gradient pass, and "
                "'gradient' needs two images of a class)"
            )
        return self._having(
            best(best_in_each_row(scores, count) if self.score == "gradient" else scores, count)
        )

    def _drawn(self, backbone: Backbone, data: Examples | None) -> tuple[Tensor, Tensor]:
        """Images and labels by which to choose, where ``backbone`` is."""
        if isinstance(data, ImageSplit):
            images, labels = data[torch.randperm(len(data))[: self.samples]]
        elif isinstance(data, tuple) and len(data) == 2 and len(data[0]) == len(data[1]) > 0:
            rows = torch.randperm(len(data[0]))[: self.samples]
            images, labels = (torch.as_tensor(part)[rows] for part in data)
        else:
            got = "nothing" if data is None else f"a {type(data).__name__}"
            raise ValueError(
                f"Sparse: score={self.score!r} chooses weights by images, and got {got}; give adapt(..., data=data.train), "
                "or data=(images, labels)"
            )
        if not images.is_floating_point() or images.min() < 0 or images.max() > 1:
            raise ValueError(
                f"Sparse: images must be floating point in [0, 1], got {images.dtype}; divide by 255"
            )
        if labels.min() < 0 or labels.max() >= backbone.num_classes:
            raise ValueError(
                f"Sparse: the labels reach from {int(labels.min())} to {int(labels.max())}, and the model has "
                f"{backbone.num_classes} classes"
            )
        device = next(backbone.parameters()).device
        return images.to(device), labels.to(device)

    def _weights(self, module: nn.Module, anatomy: Anatomy) -> dict[str, nn.Parameter]:
        """What can be chosen of, each shared weight once."""
        chosen = self.select(module, anatomy)
        weights: dict[int, tuple[str, nn.Parameter]] = {}
        for name, matrix in matrices(module, anatomy.head).items():
            if chosen(name):
                weights.setdefault(id(matrix.weight), (name, matrix.weight))
        if not weights:
            raise ValueError(
                f"Sparse: no Linear or Conv2d outside the head {anatomy.head!r} lies in where={self.where!r}"
            )
        return dict(weights.values())

    def _count(self, weights: Mapping[str, Tensor]) -> int:
        """How many weights are to be chosen."""
        total = sum(weight.numel() for weight in weights.values())
        count = int(self.budget) if self.budget >= 1 else max(1, round(self.budget * total))
        if count > total:
            raise ValueError(
                f"Sparse: budget={self.budget:g} is more than the {total:,} weights in where={self.where!r}"
            )
        return count

    def stored_in(self, tensors: Mapping[str, Tensor]) -> Self:
        """The strategy that has chosen the places in an adapter file."""
        chosen = {}
        for name, places in tensors.items():
            holder, _, last = name.rpartition(".")
            if (
                last == _PLACES
            ):  # of a weight the name is that of its layer, of anything else it has the parametrization
                layer, _, tensor = holder.partition(".parametrizations.")
                chosen[f"{layer}.{tensor.removesuffix('.0')}" if tensor else layer] = places
        return self._having(chosen)

    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Parametrize the weights that have chosen places.

        Raises:
            ValueError: nothing is chosen yet, or what is chosen are not ``budget`` places in these weights.
        """
        if self.chosen is None:
            raise ValueError(
                f"{self!r} has chosen no weights yet; put on what its chosen_on(backbone, data) returns"
            )
        weights, held = self._weights(module, anatomy), holders(module)
        for name, places in self.chosen.items():
            size = weights[name].numel() if name in weights else 0
            sound = places.dtype == torch.int64 and places.ndim == 1 and len(places) > 0
            if not sound or places[0] < 0 or places[-1] >= size or bool((places.diff() <= 0).any()):
                raise ValueError(
                    f"Sparse: the places in {name!r} are no ascending numbers from 0 to its size, {size}"
                )
        total, count = sum(map(len, self.chosen.values())), self._count(weights)
        if total != count:
            raise ValueError(
                f"Sparse: {total:,} weights are chosen, where budget={self.budget:g} means {count:,}"
            )
        new = []
        for name, places in self.chosen.items():
            new.append(SparseDelta(weights[name], places))
            for layer, tensor in held[id(weights[name])]:
                new[-1].install(layer, tensor)
        return parameter_names(module, new)


class SparseDelta(KeptDelta):
    """W with a value added at each place.

    Shapes: ``sparse_values`` (places,), and the buffer ``sparse_places``, int64, of the flat weight in its row-major order.
    """

    sparse_places: Tensor

    def __init__(self, weight: Tensor, places: Tensor) -> None:
        super().__init__()
        self.sparse_values = nn.Parameter(weight.new_zeros(len(places)))
        self.register_buffer(_PLACES, places.to(weight.device, copy=True))

    def effective(self, weight: Tensor) -> Tensor:
        """Effective weight, of the shape and strides of ``weight``."""
        places = torch.unravel_index(self.sparse_places, weight.shape)
        return weight.index_put(places, weight[places] + self.sparse_values)
