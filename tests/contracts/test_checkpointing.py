"""With gradient checkpointing every trained parameter gets the gradient that it gets without."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import paretune as pt
from paretune.attacks import attack_copy
from paretune.backbones.checkpointing import checkpointed
from paretune.strategies import trainable_parameters
from tests.contracts import backbones
from tests.contracts.contract import perturb, train_without_chance
from tests.contracts.strategies import MATRIX, made_for, read_rows

MODELS = ("vit_tiny_patch16_224", "hf_vit", "convnext_atto", "hf_swin")

REFUSED = {pair for pair, row in read_rows().items() if row["outcome"] == "refused"}
CASES = sorted({(model, strategy) for model in MODELS for strategy in MATRIX} - REFUSED)


def gradients(model: pt.Backbone, images: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    labels = torch.arange(len(images)) % model.num_classes
    cross_entropy(model(images), labels).backward()
    return {n: p.grad.clone() for n, p in trainable_parameters(model).items() if p.grad is not None}


@pytest.mark.some
@pytest.mark.parametrize(("architecture", "strategy"), CASES)
def test_gradients_are_those_without(architecture: str, strategy: str) -> None:
    model = backbones.make(architecture)
    pt.adapt(model, made_for(strategy, model))
    perturb(model)
    train_without_chance(model)
    images = backbones.images(model.image_size if isinstance(model.image_size, int) else 64)
    plain = gradients(model, images)
    with checkpointed(model, True):
        saved = gradients(model, images)
        copy = attack_copy(model)
        attacked = pt.PGD(pt.Linf(4 / 255), steps=2, keep="last")(
            copy, images, torch.zeros(len(images), dtype=torch.long)
        )
    assert saved.keys() == plain.keys()
    for name, value in plain.items():
        assert torch.allclose(saved[name], value, rtol=1e-4, atol=1e-6), name
    assert (attacked - images).abs().max() > 0
