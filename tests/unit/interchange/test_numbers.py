"""The numbers of an adapter are those that were saved, whatever their types, or it is refused."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import paretune as pt
from paretune.interchange import import_adapter, read_adapter
from paretune.interchange.checks import describe_tensors
from paretune.training.checkpoints import load_checkpoint, save_checkpoint
from paretune.training.sharding import whole_state
from tests import tiny
from tests.contracts.backbones import make
from tests.unit.interchange.helpers import adapted

TENSORS = "adapter_model.safetensors"
# One whose file has our own names, head and statistics of batch norms, and one whose file is peft's as well.
STRATEGIES = {"own": pt.Compacter(bn="adapt", n=2, reduction=4), "peft": pt.LoRA(rank=2, targets=("q", "v"))}
ARCHITECTURES = {"own": "resnet18", "peft": "test_vit"}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        kind: pt.save_adapter(
            adapted(ARCHITECTURES[kind], strategy), tmp_path_factory.mktemp("numbers") / kind
        )
        for kind, strategy in STRATEGIES.items()
    }


def changed(source: Path, target: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """A copy of a directory in which ``change`` has had the tensors of the file."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(target / TENSORS)
    change(tensors)
    save_file(tensors, target / TENSORS)
    return target


def first(tensors: dict[str, Tensor], ending: str) -> str:
    return min(name for name in tensors if name.endswith(ending))


def refused(model: pt.Backbone, directory: Path, message: str, **how: Any) -> None:
    """Loading says ``message`` with the name of the tensor, and the model is as before."""
    before = copy.deepcopy(model.module.state_dict())
    with pytest.raises(ValueError, match=message):
        pt.load_adapter(model, directory, **how)
    now = model.module.state_dict()
    assert list(now) == list(before)
    assert all(torch.equal(now[name], before[name]) for name in before)


OTHER_TYPES = [
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.complex64,
    torch.int8,
    torch.int64,
    torch.uint16,
    torch.bool,
    torch.float8_e4m3fn,
]


@pytest.mark.some
@pytest.mark.parametrize("dtype", OTHER_TYPES, ids=str)
@pytest.mark.parametrize("kind", STRATEGIES)
def test_a_tensor_of_another_type_than_was_saved_is_refused(
    kind: str, dtype: torch.dtype, directories: dict[str, Path], tmp_path: Path
) -> None:
    """Even where the type would hold each number: float64."""

    def change(tensors: dict[str, Tensor]) -> None:
        name = first(tensors, ".weight")
        tensors[name] = tensors[name].to(dtype)

    directory = changed(directories[kind], tmp_path / "a", change)
    what = str(dtype).removeprefix("torch.")
    refused(make(ARCHITECTURES[kind]), directory, rf"is damaged: .* has {what} .* where float32 .* was")


def spoil(tensors: dict[str, Tensor]) -> None:
    tensors[first(tensors, ".bias")].view(torch.int32)[0] ^= 1  # a single bit


def swap(tensors: dict[str, Tensor]) -> None:
    """Two tensors of one shape."""
    one = next(name for name in tensors if name.endswith((".lora_A.weight", "running_mean")))
    other = next(
        name
        for name in tensors
        if name != one
        and tensors[name].shape == tensors[one].shape
        and not torch.equal(tensors[name], tensors[one])
    )
    tensors[one], tensors[other] = tensors[other], tensors[one]


def count(tensors: dict[str, Tensor]) -> None:
    for name, value in tensors.items():
        if name.endswith("num_batches_tracked"):
            value.add_(1)
            return
    spoil(tensors)


@pytest.mark.some
@pytest.mark.parametrize("change", [spoil, swap, count])
@pytest.mark.parametrize("kind", STRATEGIES)
def test_a_damaged_or_exchanged_tensor_is_refused_by_name(
    kind: str, change: Any, directories: dict[str, Path], tmp_path: Path
) -> None:
    directory = changed(directories[kind], tmp_path / "a", change)
    refused(make(ARCHITECTURES[kind]), directory, "is damaged: .* has other numbers than were saved")
    with pytest.raises(ValueError, match="is damaged"):
        read_adapter(directory)
    model = make(ARCHITECTURES[kind])
    with pytest.raises(ValueError, match="is damaged"):
        pt.interchange.AdapterSet(model).add("a", directory)


@pytest.mark.parametrize(
    "recorded", [None, 7, "float32", [1], {}, {"shape": [5], "dtype": "float32"}], ids=str
)
@pytest.mark.parametrize("kind", STRATEGIES)
def test_a_record_of_another_kind_is_refused(
    recorded: Any, kind: str, directories: dict[str, Path], tmp_path: Path
) -> None:
    directory = changed(directories[kind], tmp_path / "a", lambda _: None)
    config = json.loads((directory / "paretune.json").read_text())
    config["tensors"][min(config["tensors"])] = recorded
    (directory / "paretune.json").write_text(json.dumps(config))
    refused(make(ARCHITECTURES[kind]), directory, r"is damaged|do not belong together")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int8, torch.bool, torch.float8_e4m3fn], ids=str)
def test_a_type_that_is_no_type_of_weights_is_refused_even_where_it_is_recorded(
    dtype: torch.dtype, directories: dict[str, Path], tmp_path: Path
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["fc.bias"] = tensors["fc.bias"].to(dtype)
        tensors["bn1.num_batches_tracked"] = tensors["bn1.num_batches_tracked"].to(
            torch.int32
        )  # which is read

    directory = changed(directories["own"], tmp_path / "a", change)
    config = json.loads((directory / "paretune.json").read_text())
    config["tensors"] = describe_tensors(load_file(directory / TENSORS))
    (directory / "paretune.json").write_text(json.dumps(config))
    refused(make("resnet18"), directory, rf"fc\.bias is of {dtype}, where the model has torch\.float32")


def test_a_model_whose_type_does_not_hold_the_numbers_refuses_them(directories: dict[str, Path]) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        model = make("test_vit")
        model.module.to(dtype)
        refused(
            model,
            directories["peft"],
            rf"numbers of torch\.float32 that the {dtype} of the model does not hold",
            check_base=False,
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_model_of_a_wider_type_takes_every_number(dtype: torch.dtype, tmp_path: Path) -> None:
    model = make("test_vit")
    model.module.to(dtype)
    pt.adapt(model, pt.LoRA(rank=2))
    with torch.no_grad():
        for value in pt.strategies.trainable_parameters(model).values():
            value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    pt.save_adapter(model, tmp_path / "a")
    wide = make("test_vit").double()
    pt.load_adapter(wide, tmp_path / "a", check_base=False)
    for name, value in pt.strategies.trainable_parameters(model).items():
        assert torch.equal(pt.strategies.trainable_parameters(wide)[name], value.double())


@pytest.mark.some
# What other libraries write: ``value`` stands somewhere in a float32 tensor that is then of ``dtype``.
@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        (torch.float16, 1.0, ""),
        (torch.bfloat16, 2.0**100, ""),
        (torch.float64, 0.5, ""),
        (torch.float64, -0.0, ""),
        (torch.float32, 1e-44, ""),
        (torch.float64, 0.1, "numbers of torch.float64 that the torch.float32 of the model does not hold"),
        (torch.float64, 1e300, "numbers of torch.float64 that the torch.float32 of the model does not hold"),
        (torch.float64, float("nan"), "holds NaN or infinity"),
        (torch.bfloat16, float("inf"), "holds NaN or infinity"),
        (torch.complex64, complex("nan"), "is of torch.complex64, where the model has torch.float32"),
        (torch.complex64, 1.0, "is of torch.complex64, where the model has torch.float32"),
        (torch.int8, 1, "is of torch.int8, where the model has torch.float32"),
        (torch.int64, 1, "is of torch.int64, where the model has torch.float32"),
        (torch.bool, 1, "is of torch.bool, where the model has torch.float32"),
        (torch.float8_e5m2, 1.0, "is of torch.float8_e5m2, where the model has torch.float32"),
    ],
    ids=str,
)
@pytest.mark.parametrize("library", ["peft", "through peft", "loralib"])
@pytest.mark.filterwarnings("ignore:Unsupported layer type")  # of timm's LayerNorm
def test_numbers_of_other_libraries_are_read_exactly_or_refused(
    library: str, dtype: torch.dtype, value: Any, message: str, tmp_path: Path
) -> None:
    if library == "loralib":
        tensors = {
            "blocks.0.mlp.fc1.lora_A": torch.ones(2, 64),
            "blocks.0.mlp.fc1.lora_B": torch.zeros(192, 2),
        }
        name, path = "blocks.0.mlp.fc1.lora_B", tmp_path / "a.safetensors"
    else:
        config: Any = peft.LoraConfig if library == "peft" else peft.LoHaConfig
        model = peft.get_peft_model(make("test_vit").module, config(r=2, target_modules=["fc1"]))
        model.save_pretrained(tmp_path)
        path = tmp_path / TENSORS
        tensors = load_file(path)
        name = first(tensors, "lora_B.weight" if library == "peft" else "hada_w1_b")
    tensors[name] = torch.zeros(tensors[name].shape, dtype=dtype)
    tensors[name].view(-1)[1] = value
    save_file(tensors, path)
    fresh = make("test_vit")
    how: dict[str, Any] = {"alpha": 2.0} if library == "loralib" else {}
    where = path if library == "loralib" else tmp_path
    before = copy.deepcopy(fresh.module.state_dict())
    if message:
        with pytest.raises(ValueError, match=message.replace(".", r"\.")):
            import_adapter(fresh, where, **how)
        assert list(fresh.module.state_dict()) == list(before)
    else:
        import_adapter(fresh, where, **how)
        flat = [
            t.flatten()
            for t in pt.strategies.trainable_parameters(fresh).values()
            if t.numel() == tensors[name].numel()
        ]
        assert any(torch.equal(t.double(), tensors[name].flatten().double()) for t in flat)


def test_half_precision_is_widened_before_anything_is_multiplied(tmp_path: Path) -> None:
    """Of a rank larger than the layer, the product takes the place of the factors: rounded to float32, not to float16."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator).half() for shape in ((70, 64), (192, 70)))
    save_file({"blocks.0.attn.qkv.lora_A": a, "blocks.0.attn.qkv.lora_B": b}, tmp_path / "a.safetensors")
    model = make("test_vit")
    plain: Any = model.module.get_submodule("blocks.0.attn.qkv")
    weight = plain.weight.detach().clone()
    import_adapter(model, tmp_path / "a.safetensors", alpha=70)
    expected = b.double() @ a.double()
    adapted_layer: Any = model.module.get_submodule("blocks.0.attn.qkv")
    found = adapted_layer.weight.detach().double() - weight
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def checkpointed(tmp_path: Path) -> tuple[Path, pt.Backbone, torch.optim.Optimizer]:
    model = tiny.backbone(pt.FullFineTune(bn="adapt"))
    optimizer = torch.optim.AdamW(pt.strategies.trainable_parameters(model).values())
    model(torch.rand(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path / "c.safetensors", model.module, whole_state(optimizer), {"step": 3})
    return tmp_path / "c.safetensors", model, optimizer


def rewrite(path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], object]) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118  # safe_open is no mapping
    change(tensors, metadata)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, _: tensors["model/5.bias"].view(torch.int32)[:1].bitwise_xor_(1),
        lambda tensors, _: tensors["optimizer/0/exp_avg"].view(-1)[:1].mul_(2),
        lambda tensors, _: tensors.update({"model/5.bias": tensors["model/5.bias"].half()}),
        lambda tensors, _: tensors.update({"model/5.bias": tensors["model/5.bias"][:1]}),
        lambda tensors, _: tensors.pop("optimizer/0/exp_avg"),
        lambda tensors, _: tensors.update(
            {
                "optimizer/0/exp_avg": tensors["optimizer/0/exp_avg_sq"],
                "optimizer/0/exp_avg_sq": tensors["optimizer/0/exp_avg"],
            }
        ),
        lambda _, metadata: metadata.update(progress='{"step": 4}'),
        lambda _, metadata: metadata.pop("digest"),
    ],
)
def test_a_changed_checkpoint_is_refused_and_the_model_stays(change: Any, tmp_path: Path) -> None:
    path, model, optimizer = checkpointed(tmp_path)
    assert load_checkpoint(path, model.module, optimizer) == {"step": 3}
    rewrite(path, change)
    before = copy.deepcopy(model.module.state_dict())
    with torch.no_grad():
        for value in model.parameters():
            value.add_(1)
    moved = copy.deepcopy(model.module.state_dict())
    assert any(not torch.equal(moved[name], before[name]) for name in before)
    with pytest.raises(
        ValueError, match=r"checkpoint .* is damaged .*delete it to train this run from its start"
    ):
        load_checkpoint(path, model.module, optimizer)
    assert all(torch.equal(value, moved[name]) for name, value in model.module.state_dict().items())


def test_the_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    path, *_ = checkpointed(tmp_path)
    other = tiny.backbone(pt.LinearProbe())
    optimizer = torch.optim.AdamW(pt.strategies.trainable_parameters(other).values())
    with pytest.raises(ValueError, match="does not fit"):
        load_checkpoint(path, other.module, optimizer)
