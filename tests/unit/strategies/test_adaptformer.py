"""AdaptFormer is the bottleneck of its paper and of its authors' code beside each MLP; an Adapter may be given its width."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paretune as pt
from paretune.strategies import AdaptFormer
from paretune.sweeps.config import RunConfig
from paretune.sweeps.grid import directory_name
from tests.contracts.backbones import images, make
from tests.contracts.contract import logits


def by_hand(block: Any, down: nn.Linear, up: nn.Linear, scale: float, reads: str, x: Tensor) -> Tensor:
    """The forward of a block in the authors' code, where the adapter reads the stream; or in the paper's equation 2."""
    x = x + block.attn(block.norm1(x))
    adapted = up(F.relu(down(x if reads == "stream" else block.norm2(x)))) * scale
    result: Tensor = x + block.mlp(block.norm2(x)) + adapted
    return result


def move(model: pt.Backbone) -> None:
    """Give what has been added to the model, and not its head, other values."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in pt.strategies.trainable_parameters(model, head=False).values():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.3 * noise)


@pytest.mark.parametrize("reads", ["stream", "input"])
def test_a_block_is_that_of_the_authors(reads: Any) -> None:
    base = make("test_vit").double()
    model = pt.adapt(copy.deepcopy(base), AdaptFormer(width=5, scale=0.3, reads=reads))
    move(model)
    for block, adapted in zip(base.module.blocks, model.module.blocks, strict=True):
        place = adapted.drop_path2 if reads == "stream" else adapted.mlp
        down, up = place.bottleneck.down, place.bottleneck.up
        assert down.weight.shape == (5, 64)
        block.forward = lambda x, block=block, down=down, up=up: by_hand(block, down, up, 0.3, reads, x)
    x = images(160).double()
    found = logits(model, x)
    torch.testing.assert_close(found, logits(base, x))
    assert not torch.allclose(found, logits(pt.remove_adapter(model), x))


@pytest.mark.parametrize(
    "strategy", [AdaptFormer(width=400, dropout=0.25), pt.Adapter(width=400, dropout=0.25)]
)
def test_dropout_is_of_the_bottleneck_while_training_and_keeps_the_mean(strategy: Any) -> None:
    model = pt.adapt(make("test_vit"), strategy)
    adapter = model.module.blocks[0].drop_path2.bottleneck
    shown: list[Tensor] = []
    adapter.up.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    x = torch.rand(50, 64)
    for mode in (False, True):
        adapter.train(mode)(x)
    plain, dropped = shown
    active = plain != 0
    kept = dropped[active] != 0
    assert 0.7 < kept.float().mean() < 0.8
    torch.testing.assert_close(dropped[active][kept], plain[active][kept] / 0.75)
    assert not (dropped[0] != 0).equal(dropped[1] != 0)  # each of its own
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\), got 1"):
        type(strategy)(dropout=1)


def test_runs_and_files_from_before_there_was_dropout_keep_their_names() -> None:
    assert "dropout" not in pt.Adapter().to_dict()
    assert pt.Adapter(dropout=0.1).to_dict()["dropout"] == 0.1
    assert repr(AdaptFormer(dropout=0.1)) == "AdaptFormer(dropout=0.1)"
    config = RunConfig(strategy=pt.Adapter(), seed=0, data="digits", epsilon="4/255")
    assert directory_name(config) == "adapter-seed0-4b8c5ccb"


def test_it_starts_as_in_the_paper() -> None:
    model = pt.adapt(make("test_vit"), AdaptFormer())
    for block in model.module.blocks:
        adapter = block.drop_path2.bottleneck
        assert not any(value.any() for value in (adapter.up.weight, adapter.up.bias, adapter.down.bias))
        bound = 64**-0.5  # nn.init.kaiming_uniform_ of a=sqrt(5) draws from ± 1 / sqrt(fan-in)
        assert 0.9 * bound < float(adapter.down.weight.detach().abs().max()) <= bound
        assert (adapter.down.out_features, adapter.scale, adapter.activation) == (64, 0.1, "relu")


def test_a_stream_that_is_not_known_is_refused_and_the_input_read_instead() -> None:
    base = make("swinv2_tiny_window8_256")
    with pytest.raises(ValueError, match=r"stream in front of .* is not known .*; give reads= another value"):
        pt.adapt(base, AdaptFormer())
    pt.adapt(base, AdaptFormer(reads="input"))
    with pytest.raises(ValueError, match="is a known MLP"):
        pt.adapt(make("resnet18"), AdaptFormer(reads="input"))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"width": 0}, "width must be at least 1"), ({"scale": 0.0}, "scale must be above 0")],
)
def test_numbers_that_mean_nothing_are_refused(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptFormer(**change)


def test_a_width_counts_instead_of_a_reduction_and_older_files_without_one_load(tmp_path: Path) -> None:
    assert pt.Adapter(width=3).bottleneck(64) == 3
    assert pt.Adapter(reduction=8).bottleneck(64) == 8
    model = pt.adapt(make("test_vit"), pt.Adapter(reduction=8))
    move(model)
    directory = pt.save_adapter(model, tmp_path / "adapter")
    file = directory / "paretune.json"
    written = json.loads(file.read_text(encoding="utf-8"))
    assert written["strategy"].pop("width") is None
    file.write_text(json.dumps(written), encoding="utf-8")
    x = images(160)
    assert torch.equal(logits(pt.load_adapter(make("test_vit"), directory), x), logits(model, x))
