"""The head that a network was pretrained with, which gives way to that of the task."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paretune.backbones.backbone import Backbone, find_head, inside

_HEAD = "_paretune_pretrained_head"


@dataclass(frozen=True, eq=False)
class Head:
    """A classifier of features.

    Args:
        weight: (classes, features).
        bias: (classes,), if there is one.
    """

    weight: Tensor
    bias: Tensor | None

    def __call__(self, features: Tensor) -> Tensor:
        """Logits (batch, classes), of features (batch, features)."""
        return nn.functional.linear(
            features,
            self.weight.to(features.device),
            None if self.bias is None else self.bias.to(features.device),
        )


def note_pretrained_head(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Note the tensors of the head that weights for ``module`` came with, by their full names; none is no head."""
    module.__dict__.pop(_HEAD, None)
    if tensors:
        module.__dict__[_HEAD] = {
            name.rpartition(".")[2]: value.detach().clone() for name, value in tensors.items()
        }


def pretrained_head(backbone: Backbone) -> Head:
    """The head that the weights of ``backbone`` came with: in the file that was given, else in the published weights.

    The latter are read again.

    Raises:
        ValueError: they came without one, or it is none of a matrix and a bias that takes the features of ``backbone``.
    """
    tensors: Any = backbone.module.__dict__.get(_HEAD)
    if tensors is None and backbone.published:
        tensors = _published(str(backbone.source))
    head: Any = backbone.module.get_submodule(backbone.head)
    width = head.weight[0].numel()
    if not tensors or set(tensors) - {"bias"} != {"weight"} or tensors["weight"][0].numel() != width:
        what = (
            "came without a head"
            if not tensors
            else f"have a head of {', '.join(sorted(tensors))} that does not suit it"
        )
        raise ValueError(
            f"the weights of {backbone.source or backbone.architecture} {what}, and without the head that it was pretrained "
            f"with nobody knows its former answers; give load_backbone weights that have one for {width} features"
        )
    return Head(tensors["weight"].flatten(1).float(), tensors["bias"].float() if "bias" in tensors else None)


def _published(source: str) -> dict[str, Tensor] | None:
    kind, _, name = source.partition(":")
    missing: list[str] = []
    if kind == "timm":
        import timm

        module: Any = timm.create_model(name, pretrained=True)
        head = module.pretrained_cfg["classifier"]
    elif kind == "hf":
        import transformers

        auto: Any = transformers.AutoModelForImageClassification
        module, info = auto.from_pretrained(
            name, output_loading_info=True, dtype="float32", trust_remote_code=False
        )
        head, missing = find_head(module, None), list(info["missing_keys"])
    else:
        return None
    layer = module.get_submodule(head)
    if any(inside(key, head) for key in missing) or not isinstance(layer, nn.Linear | nn.Conv2d):
        return None
    with torch.no_grad():
        return {name: value.clone() for name, value in layer.state_dict().items()}
