"""A head of given embeddings is one and the same for training, attacks, measurements and files."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import paretune as pt
from paretune.backbones import prototype_head
from tests import tiny

ATTACK = pt.PGD(pt.Linf(4 / 255), steps=2)


def plain(seed: int = 0) -> pt.Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return pt.Backbone(tiny.network().eval(), image_size=8, sites=["1.norm"])


def embeddings(seed: int = 1, classes: int = 10, features: int = 32) -> torch.Tensor:
    return torch.randn(classes, features, generator=torch.Generator().manual_seed(seed))


def test_logits_are_cosines_over_the_temperature() -> None:
    model, images = plain(), torch.rand(4, 3, 8, 8)
    module: Any = model.module
    features = module[:-1]((images - 0.5) / 0.5)
    expected = F.cosine_similarity(features[:, None], embeddings()[None], dim=2) / 0.05
    assert prototype_head(model, embeddings(), temperature=0.05) is model
    assert torch.allclose(model(images), expected, atol=1e-4)
    assert model.num_classes == 10
    assert torch.allclose(pt.attacks.attack_copy(model)(images), expected, atol=1e-4)
    assert prototype_head(model, embeddings(2, 7), classes=list("abcdefg")).classes == tuple("abcdefg")
    assert model(images).shape == (4, 7)


def test_adversarial_training_with_it_is_tecoa_and_leaves_it_as_it_is(tmp_path: Path) -> None:
    model = pt.adapt(prototype_head(plain(), embeddings()), pt.LoRA(rank=2))
    trained = pt.strategies.trainable_parameters(model)
    assert all("lora" in name for name in trained)
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    module: Any = model.module
    features = F.normalize(module[:-1]((images - 0.5) / 0.5), dim=1)
    expected = F.cross_entropy(100 * features @ F.normalize(embeddings(), dim=1).T, labels)
    assert torch.allclose(F.cross_entropy(model(images), labels), expected, atol=1e-4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tiny.run(tmp_path / "run", model=model, objective=pt.AdversarialTraining(ATTACK))
    after = model.state_dict()
    assert torch.equal(after["module.5.prototypes"], before["module.5.prototypes"])
    assert torch.equal(after["module.5.scale"], torch.tensor(100.0))
    images = tiny.data().report[:20][0]
    found = pt.load_adapter(prototype_head(plain(), embeddings(5), temperature=3.0), tmp_path / "run/adapter")
    assert torch.equal(found(images), model.eval()(images))  # the adapter has its own embeddings


def test_adapter_files_do_not_load_onto_another_kind_of_head(tmp_path: Path) -> None:
    model = pt.adapt(prototype_head(plain(), embeddings()), pt.LoRA(rank=2))
    pt.save_adapter(model, tmp_path / "prototypes")
    assert (
        "class embeddings" in json.loads((tmp_path / "prototypes/paretune.json").read_text())["peft_reason"]
    )
    with pytest.raises(
        ValueError, match=r"a Linear; give it such a head first.*prototype_head.*torch\.ones\(10, 32\)"
    ):
        pt.load_adapter(plain(), tmp_path / "prototypes")
    found = pt.load_adapter(prototype_head(plain(), torch.ones(10, 32)), tmp_path / "prototypes")
    images = torch.rand(3, 3, 8, 8)
    assert torch.equal(found(images), model.eval()(images))
    pt.save_adapter(pt.adapt(plain(), pt.LoRA(rank=2)), tmp_path / "linear")
    with pytest.raises(ValueError, match="does not fit"):
        pt.load_adapter(prototype_head(plain(), embeddings()), tmp_path / "linear")


def test_removing_a_loaded_adapter_gives_the_embeddings_back(tmp_path: Path) -> None:
    pt.save_adapter(pt.adapt(prototype_head(plain(), embeddings()), pt.LoRA(rank=2)), tmp_path / "adapter")
    model = prototype_head(plain(), embeddings(5))
    before = copy.deepcopy(model.state_dict())
    pt.load_adapter(model, tmp_path / "adapter")
    assert not torch.equal(model.state_dict()["module.5.prototypes"], before["module.5.prototypes"])
    pt.remove_adapter(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    model = plain()
    for wrong, message in (
        (torch.randn(10, 31), r"embeddings must be \(classes, 32\).*got \(10, 31\)"),
        (torch.randn(1, 32), "at least 2 classes"),
        (torch.full((3, 32), torch.nan), "finite"),
        (torch.zeros(3, 32), "none of them zero"),
    ):
        with pytest.raises(ValueError, match=message):
            prototype_head(model, wrong)
    with pytest.raises(ValueError, match="temperature"):
        prototype_head(model, embeddings(), temperature=0)
    with pytest.raises(ValueError, match="classes must name 10"):
        prototype_head(model, embeddings(), classes=["a"])
    assert isinstance(model.module.get_submodule("5"), torch.nn.Linear)
    adapted = pt.adapt(plain(), pt.LoRA(rank=2))
    with pytest.raises(ValueError, match="before adapt"):
        prototype_head(adapted, embeddings())


def test_a_strategy_that_trains_the_head_alone_has_nothing_to_train() -> None:
    model = prototype_head(plain(), embeddings())
    with pytest.raises(ValueError, match="would train nothing"):
        pt.adapt(model, pt.LinearProbe())
    assert pt.strategies.adaptation_of(model) is None


def test_files_of_other_libraries_which_have_no_such_head_are_refused(tmp_path: Path) -> None:
    import timm

    network = timm.create_model("test_vit", num_classes=3)
    model = pt.adapt(prototype_head(pt.Backbone(network), embeddings(features=64)), pt.LoRA(rank=2))
    refused = (
        lambda: pt.interchange.save_merged(model, tmp_path / "merged.safetensors"),
        lambda: pt.interchange.export_model(model, tmp_path / "timm", format="timm"),
        lambda: pt.interchange.save_peft(model, tmp_path / "peft"),
    )
    for save in refused:
        with pytest.raises(ValueError, match="class embeddings, of which no model of timm"):
            save()
    assert not list(tmp_path.iterdir())
