"""Of which grid of patches the position embeddings of a file are: that of its images, or refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import paretune as pt
from paretune.backbones.weights import load_weights
from paretune.data.sizes import ImageSize


def vit(size: ImageSize, weights: Path | None = None) -> pt.Backbone:
    """Patches of 16 x 16 pixels."""
    return pt.load_backbone("timm:test_vit", num_classes=3, img_size=size, pretrained=False, weights=weights)


def positions(model: pt.Backbone) -> Tensor:
    return model.module.get_parameter("pos_embed")


def plain_file(directory: Path, size: ImageSize) -> tuple[Path, Tensor]:
    model = vit(size)
    torch.save(model.module.state_dict(), directory / "weights.pth")
    return directory / "weights.pth", positions(model)


@pytest.mark.parametrize("size", [(32, 48), (32, 128), (80, 320), 64], ids=str)
def test_a_merged_model_is_read_at_its_own_size_as_it_was(tmp_path: Path, size: ImageSize) -> None:
    # 5 x 20 patches are as many as the 10 x 10 that the architecture has by itself, 2 x 8 as many as 4 x 4.
    model = pt.adapt(vit(size), pt.LoRA(rank=2))
    path = pt.interchange.save_merged(model, tmp_path / "merged.safetensors")
    read = vit(size, path)
    assert torch.equal(positions(read), positions(model))
    images = torch.rand(2, 3, *(size if isinstance(size, tuple) else (size, size)))
    with torch.no_grad():
        assert torch.allclose(read(images), model(images), atol=1e-6)


@pytest.mark.parametrize("other", [(48, 32), 64, 96], ids=str)
def test_a_merged_model_of_a_rectangle_is_read_at_no_other_size(tmp_path: Path, other: ImageSize) -> None:
    model = pt.adapt(vit((32, 48)), pt.LoRA(rank=2))
    path = pt.interchange.save_merged(model, tmp_path / "merged.safetensors")
    with pytest.raises(ValueError, match=r"images of \(32, 48\).*img_size=\(32, 48\), not"):
        vit(other, path)


@pytest.mark.parametrize("made_at", [64, (32, 128), (128, 32)], ids=str)
def test_a_plain_file_that_may_be_of_a_square_is_refused_for_a_rectangle(
    tmp_path: Path, made_at: ImageSize
) -> None:
    path, _ = plain_file(tmp_path, made_at)
    with pytest.raises(ValueError, match=r"pos_embed is of 2 x 8 places.*or of a square.*Backbone\("):
        vit((32, 128), path)


def test_a_plain_file_with_as_many_places_as_only_the_rectangle_has_is_taken_as_it_is(tmp_path: Path) -> None:
    path, there = plain_file(tmp_path, (32, 48))
    assert torch.equal(positions(vit((32, 48), path)), there)


def test_a_plain_file_of_a_square_is_resampled_to_a_rectangle(tmp_path: Path) -> None:
    from timm.layers import resample_abs_pos_embed

    path, there = plain_file(tmp_path, 96)
    wanted = resample_abs_pos_embed(there.detach(), [2, 8], [6, 6], num_prefix_tokens=1)
    assert torch.equal(positions(vit((32, 128), path)), wanted)


def test_relative_positions_of_a_rectangle_are_refused_where_they_may_be_of_a_square() -> None:
    # 1 x 5 patches are shifted in 1 * 9 ways, 2 x 2 in 3 * 3.
    model = pt.load_backbone(
        "timm:beitv2_base_patch16_224", num_classes=3, img_size=(16, 80), pretrained=False
    )
    state = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    name = "blocks.0.attn.relative_position_bias_table"
    torch.nn.init.normal_(state[name])
    with pytest.raises(ValueError, match=r"relative_position_bias_table is of 1 x 9 places"):
        load_weights(model.module, state, "head", image_size=(16, 80))
    load_weights(model.module, state, "head", image_size=(16, 80), made_at=(16, 80))
    assert torch.equal(model.module.state_dict()[name], state[name])
