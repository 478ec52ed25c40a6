"""Adapters of the adapters library give the logits that it computed, in the ViT of transformers and in timm's.

The files and the logits, in float64, were recorded by ``tests/fixtures/make_adapters.py``.
"""

import copy
import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import paretune as pt
from paretune.interchange.adapters import reading
from paretune.strategies import adaptation_of

FIXTURES = Path(__file__).parents[3] / "fixtures" / "adapters"
RECORDED = load_file(FIXTURES / "logits.safetensors")
EVERY = sorted(set(RECORDED) - {"images", "base"})


def hugging_face() -> nn.Module:
    """The base of the fixtures, in transformers 5."""
    model = transformers.ViTForImageClassification.from_pretrained(FIXTURES / "base")
    return model.double().eval()


def timm_twin() -> nn.Module:
    """The base of the fixtures in timm, whose queries, keys and values are one layer."""
    model = VisionTransformer(
        img_size=16,
        patch_size=8,
        embed_dim=16,
        depth=2,
        num_heads=2,
        mlp_ratio=1.5,
        num_classes=5,
        norm_layer=partial(nn.LayerNorm, eps=1e-12),
    )
    theirs = load_file(FIXTURES / "base" / "model.safetensors")
    names = {
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
        "norm": "vit.layernorm",
        "head": "classifier",
    }
    state = {}
    for i in range(2):
        layer = f"vit.encoder.layer.{i}"
        names |= {
            f"blocks.{i}.norm1": f"{layer}.layernorm_before",
            f"blocks.{i}.norm2": f"{layer}.layernorm_after",
            f"blocks.{i}.attn.proj": f"{layer}.attention.output.dense",
            f"blocks.{i}.mlp.fc1": f"{layer}.intermediate.dense",
            f"blocks.{i}.mlp.fc2": f"{layer}.output.dense",
        }
        for kind in ("weight", "bias"):
            parts = [f"{layer}.attention.attention.{part}.{kind}" for part in ("query", "key", "value")]
            state[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat([theirs[part] for part in parts])
    for ours, name in names.items():
        for kind in ("", ".weight", ".bias"):
            if name + kind in theirs:
                state[ours + kind] = theirs[name + kind]
    model.load_state_dict(state)
    return model.double().eval()


MODELS: dict[str, Callable[[], nn.Module]] = {"transformers": hugging_face, "timm": timm_twin}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        output: Any = model(RECORDED["images"].double())
    return output if isinstance(output, Tensor) else output.logits


@pytest.mark.parametrize("kind", MODELS)
def test_the_bare_base_gives_the_recorded_logits(kind: str) -> None:
    torch.testing.assert_close(logits(MODELS[kind]()), RECORDED["base"])


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", EVERY)
def test_logits_are_those_of_the_adapters_library(name: str, kind: str) -> None:
    """In float64, within the bounds by which torch calls numbers of that type equal: 1e-7."""
    model = MODELS[kind]()
    assert reading.recognise(FIXTURES / name)
    assert reading.load(model, FIXTURES / name) is model
    torch.testing.assert_close(logits(model), RECORDED[name])
    assert not torch.allclose(RECORDED[name], RECORDED["base"], rtol=1e-3, atol=1e-3)


def edited(directory: Path, name: str, change: Callable[[dict[str, Any]], object] | None = None) -> Path:
    """A copy of the fixture ``name`` whose ``adapter_config.json`` went through ``change``."""
    copied = directory / name
    shutil.copytree(FIXTURES / name, copied)
    config = json.loads((copied / "adapter_config.json").read_text())
    if change is not None:
        change(config)
    (copied / "adapter_config.json").write_text(json.dumps(config))
    return copied


def setting(**values: object) -> Callable[[dict[str, Any]], object]:
    """A change of entries of ``config``."""
    return lambda config: config["config"].update(values)


def renamed(directory: Path, name: str, rename: Callable[[str], str]) -> Path:
    """A copy of the fixture ``name`` whose tensors have other names, as a safetensors file."""
    copied = edited(directory, name)
    old = copied / "pytorch_adapter.bin"
    tensors = (
        torch.load(old, weights_only=True) if old.exists() else load_file(copied / "adapter.safetensors")
    )
    old.unlink(missing_ok=True)
    save_file(
        {rename(key): value.contiguous() for key, value in tensors.items()}, copied / "adapter.safetensors"
    )
    return copied


def rename_as_transformers_5(key: str) -> str:
    """The name of the same tensor if the library wrapped the ViT of transformers 5."""
    for old, new in {
        "encoder.layer": "layers",
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "output.output_adapters": "mlp.output_adapters",
    }.items():
        key = key.replace(old, new)
    return key


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", ["compacter_pp", "double_seq_bn", "lora_everywhere", "ia3"])
def test_names_of_transformers_5_mean_the_same(name: str, kind: str, tmp_path: Path) -> None:
    path = renamed(tmp_path, name, rename_as_transformers_5)
    modules = {own for own, _ in hugging_face().named_modules()}
    for key in load_file(path / "adapter.safetensors"):
        owner = re.split(r"\.(?:loras|attention_adapters|output_adapters|shared_parameters)\.", key)[0]
        assert owner in modules
    model = MODELS[kind]()
    reading.load(model, path)
    torch.testing.assert_close(logits(model), RECORDED[name])


@pytest.mark.parametrize("name", ["compacter_pp", "phm", "double_seq_bn", "par_bn", "ia3", "union"])
def test_an_imported_adapter_is_one_of_ours(name: str, tmp_path: Path) -> None:
    """It is saved and loaded, trains exactly its own parameters and the head, and comes off without a trace."""
    model = hugging_face()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    reading.load(model, FIXTURES / name)
    pt.save_adapter(model, tmp_path / "ours")
    other = pt.load_adapter(hugging_face(), tmp_path / "ours")
    assert torch.equal(logits(other), logits(model))
    trained = {key for key, value in model.named_parameters() if value.requires_grad}
    assert (
        trained == set(pt.strategies.trainable_parameters(model)) >= {"classifier.weight", "classifier.bias"}
    )
    pt.remove_adapter(model)
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_backbone_takes_it_and_normalises_inside() -> None:
    backbone = pt.Backbone(timm_twin(), image_size=16).double()
    reading.load(backbone, FIXTURES / "compacter_pp")
    with torch.no_grad():
        found = backbone(RECORDED["images"].double() * 0.5 + 0.5)
    torch.testing.assert_close(found, RECORDED["compacter_pp"])
    assert adaptation_of(backbone) is not None


def test_the_strategies_are_those_of_the_papers() -> None:
    """Compacter, Compacter++ with the sum that the library feeds it, Houlsby with one width a layer, LoRA, (IA)³."""

    def read(name: str) -> str:
        model = reading.load(timm_twin(), FIXTURES / name)
        found = adaptation_of(model)
        assert found is not None
        return repr(found.strategy)

    assert read("compacter") == "Compacter(reduction=4.0)"
    assert read("compacter_pp") == "Compacter(reduction=4.0, rank=2, placement='mlp', reads='sum')"
    assert read("par_bn") == (
        "Adapter(style='pfeiffer', reduction=4.0, activation='relu', scale=4.0, reads='stream')"
    )
    assert read("double_seq_bn") == (
        "Adapter(where=('blocks.0',), reduction=4.0, activation='silu') + "
        "Adapter(where=('blocks.1',), reduction=8.0, activation='silu')"
    )
    assert read("lora") == "LoRA(rank=2, alpha=6.0, targets=('q', 'v'))"
    assert read("ia3_scaled") == "IA3(where=('blocks.1',), targets=('q', 'v', 'fc1'))"
    assert read("union") == (
        "LoRA(rank=2, alpha=8.0, targets=('q', 'v')) + "
        "Adapter(style='pfeiffer', reduction=8.0, activation='relu', reads='sum')"
    )


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("seq_bn", {"ln_before": True}, "ln_before=True"),
        ("seq_bn", {"ln_after": True}, "ln_after=True"),
        ("seq_bn", {"use_gating": True}, "use_gating=True"),
        ("seq_bn", {"inv_adapter": "nice"}, "inv_adapter='nice'"),
        ("seq_bn", {"original_ln_after": False}, "original_ln_after=False.* added 0 times"),
        ("seq_bn", {"residual_before_ln": False}, "original_ln_after=True.* added 2 times"),
        ("seq_bn", {"residual_before_ln": "post_add"}, "residual_before_ln='post_add'"),
        ("seq_bn", {"non_linearity": "laplace"}, "non_linearity='laplace'"),
        ("seq_bn", {"reduction_factor": {"0": 4}}, "reduction_factor=None.* layer 1 needs a number"),
        ("seq_bn", {"reduction_factor": 0.5}, "reduction_factor=0.5.* no wider"),
        ("seq_bn", {"output_adapter": False}, "no adapter at all"),
        ("seq_bn", {"leave_out": [0, 1]}, "no layer of the model is left"),
        ("seq_bn", {"scaling": "huge"}, "scaling='huge'"),
        ("seq_bn", {"a_new_switch": 1}, "a_new_switch=1.* no such setting is known"),
        ("seq_bn", {"architecture": "prefix_tuning"}, "architecture='prefix_tuning'"),
        ("par_bn", {"original_ln_after": False}, "original_ln_after=False"),
        ("compacter", {"shared_W_phm": True}, "shared_W_phm=True"),
        ("compacter", {"phm_dim": 3}, "phm_dim=3 does not divide 4"),
        ("lora", {"use_dora": True}, "use_dora=True"),
        ("lora", {"vera_d": 0.1}, "vera_d=0.1"),
        ("lora", {"use_gating": True}, "use_gating=True"),
        ("lora", {"composition_mode": "multiply"}, "composition_mode='multiply'"),
        ("lora", {"attn_matrices": ["o"]}, r"attn_matrices=\['o'\]"),
        ("lora", {"r": "two"}, "is damaged"),
        ("union", {"configs": "many"}, "configs='many'"),
    ],
)
def test_what_cannot_be_read_exactly_is_refused_by_its_key(
    name: str, changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    refused(edited(tmp_path, name, setting(**changes)), message)


def refused(path: Path, message: str) -> None:
    """Assert that both models refuse, and stay as they were."""
    for make in MODELS.values():
        model = make()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            reading.load(model, path)
        assert list(before) == list(model.state_dict())
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert adaptation_of(model) is None


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (lambda key: key.replace("layer.1.output", "layer.7.output"), "layer 7, and the model has 2 layers"),
        (lambda key: key.replace("adapter_up.bias", "adapter_up.bios"), "adapter_up.bias is missing"),
        (
            lambda key: key.replace("layer.1.output.output", "layer.1.attention"),
            "does not fit: .* is missing",
        ),
        (lambda key: key.replace("layer.0", "floor.0"), "floor.* is no tensor of a bottleneck"),
        (lambda key: key.replace(".adapters.", ".gates."), "is no tensor of a bottleneck"),
    ],
)
def test_foreign_missing_and_extra_tensors_are_named(
    rename: Callable[[str], str], message: str, tmp_path: Path
) -> None:
    refused(renamed(tmp_path, "seq_bn", rename), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(hidden_size=768), "hidden_size=768, the model has width 16"),
        (lambda config: config.update(model_type="beit"), "model_type='beit'"),
        (lambda config: config.update(config=None), "does not describe an adapter"),
    ],
)
def test_another_base_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    refused(edited(tmp_path, "seq_bn", change), message)


def test_another_number_of_classes_is_refused() -> None:
    model = hugging_face()
    model.classifier = nn.Linear(16, 7).double()
    with pytest.raises(ValueError, match=r"5 classes .* the model 7 .* num_classes=5"):
        reading.load(model, FIXTURES / "compacter")


def test_a_head_of_two_layers_is_refused(tmp_path: Path) -> None:
    path = edited(tmp_path, "flexible_head")
    head = json.loads((path / "head_config.json").read_text())
    head["config"]["layers"] = 2
    (path / "head_config.json").write_text(json.dumps(head))
    refused(path, "layers=2; only a linear head")


def test_a_network_that_is_no_vit_is_refused() -> None:
    import timm

    for name in ("resnet18", "convnext_atto"):
        model = timm.create_model(name, num_classes=5)
        with pytest.raises(ValueError, match="an adapter of a ViT does not fit"):
            reading.load(model, FIXTURES / "seq_bn")


def test_the_directory_of_peft_and_others_are_not_recognised(tmp_path: Path) -> None:
    assert not reading.recognise(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "config": {}, "model_type": "vit"}')
    assert not reading.recognise(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{broken")
    assert not reading.recognise(tmp_path)


def test_a_directory_without_tensors_is_refused(tmp_path: Path) -> None:
    path = edited(tmp_path, "seq_bn")
    (path / "pytorch_adapter.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"has neither adapter.safetensors nor pytorch_adapter.bin"):
        reading.load(hugging_face(), path)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('the file ran code')",))


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    path = edited(tmp_path, "seq_bn")
    torch.save({"weight": Bomb()}, path / "pytorch_adapter.bin")
    refused(path, "without running code")


def test_files_of_older_versions_are_corrected_as_the_library_does(tmp_path: Path) -> None:
    """Before 1.1.0 LoRA was scaled by one; in files without a version gelu is the tanh approximation."""

    def strategy(name: str, change: Callable[[dict[str, Any]], object]) -> Any:
        path = edited(tmp_path / str(len(list(tmp_path.iterdir()))), name, change)
        found = adaptation_of(reading.load(timm_twin(), path))
        assert found is not None
        return found.strategy

    assert strategy("lora", lambda config: config.update(version="adapters.1.0.1")).scaling == 1.0
    assert strategy("lora", lambda config: config.update(version="adapters.1.1.0")).scaling == 3.0
    assert strategy("lora", lambda config: config.update(version="3.2.1")).scaling == 3.0
    assert strategy("compacter", lambda config: config.pop("version")).activation == "gelu_tanh"
    assert strategy("attention_only", lambda config: config.pop("version")).activation == "gelu_tanh"


def test_a_second_adapter_is_refused() -> None:
    model = reading.load(timm_twin(), FIXTURES / "lora")
    expected = logits(copy.deepcopy(model))
    with pytest.raises(ValueError, match="already carries LoRA"):
        reading.load(model, FIXTURES / "seq_bn")
    assert torch.equal(logits(model), expected)
