"""The backbone that an adapter names, with the adapter on it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune._values import told

if TYPE_CHECKING:
    from paretune.backbones.backbone import Backbone


def adapter_directory(path: str) -> Path:
    """The adapter of a run directory, the directory itself, or what "hf:user/repo" downloads."""
    if path.startswith("hf:"):
        from paretune.interchange.hub import fetch

        return fetch(path)
    inside = Path(path) / "adapter"
    return inside if inside.is_dir() else Path(path)


def load_adapted(
    path: str, backbone: str | None, weights: str | None, weights_key: str | None = None
) -> tuple["Backbone", dict[str, Any]]:
    """The backbone that an adapter names, with the adapter on it, and what the adapter says of itself."""
    from paretune.interchange.loading import load_adapter

    model, config = load_base(path, backbone, weights, weights_key)
    load_adapter(model, adapter_directory(path))
    return model, config


def load_base(
    path: str, backbone: str | None, weights: str | None, weights_key: str | None = None, *, seed: int = 0
) -> tuple["Backbone", dict[str, Any]]:
    """The backbone that an adapter names, bare with a head of this seed, and what the adapter says of itself."""
    from paretune.backbones.loading import load_backbone
    from paretune.interchange.files import read_adapter

    directory = adapter_directory(path)
    config, _ = read_adapter(directory)
    name = config["base"].get("source") if backbone is None else backbone
    if not name and backbone is None:
        raise ValueError(
            f"{directory} does not name its backbone; pass --backbone timm:NAME, hf:NAME or an offline name"
        )
    size = (config["preprocessing"] or {}).get("image_size")
    with told("backbone", backbone):
        model = load_backbone(
            name,
            num_classes=config["num_classes"],
            img_size=size,
            weights=weights,
            weights_key=weights_key,
            seed=seed,
        )
    return model, config
