"""Adapted models as whole objects: pickled, sent to a fresh process, exported as a graph."""

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import paretune as pt
from paretune.strategies import Strategy
from tests.contracts.backbones import images, make
from tests.contracts.contract import logits, perturb, unchanged
from tests.contracts.strategies import made_for, read_rows

ROWS = read_rows()
PAIRS = [
    *(
        (arch, name)
        for arch, name in ROWS
        if arch == "vit_tiny_patch16_224" and name != "Peft LoHa" and ROWS[arch, name]["outcome"] == "works"
    ),
    *(("mobilenetv3_small_050", name) for name in ("LoRA", "IA3", "Depthwise adapter", "LoRA + BitFit")),
    ("hf_vit", "LoRA"),
    ("hf_vit", "Deep prompt"),
    ("hf_vit", "Peft LoHa"),
]


def adapted(arch: str, strategy: Strategy | None = None, name: str = "") -> pt.Backbone:
    base = make(arch)
    backbone = pt.adapt(base, strategy or made_for(name, base))
    perturb(backbone)
    return backbone


def through_a_file(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.some(10)
@pytest.mark.parametrize(("arch", "name"), PAIRS)
def test_a_saved_model_comes_back_whole(arch: str, name: str) -> None:
    base = make(arch)
    x = images(base.image_size)
    backbone = adapted(arch, name=name)
    back = through_a_file(backbone)
    assert torch.equal(logits(back, x), logits(backbone, x))
    assert list(back.state_dict()) == list(backbone.state_dict())
    assert set(pt.strategies.trainable_parameters(back)) == set(pt.strategies.trainable_parameters(backbone))
    back.train()(x).square().sum().backward()  # what is shared is one parameter again
    assert all(p.grad is not None for n, p in back.module.named_parameters() if p.requires_grad)
    twin = copy.deepcopy(back.eval())
    assert torch.equal(logits(twin, x), logits(backbone, x))
    flags = {name: parameter.requires_grad for name, parameter in base.module.named_parameters()}
    unchanged(pt.remove_adapter(back), dict(base.module.state_dict()), flags)  # type: ignore[arg-type]
    assert torch.equal(logits(twin, x), logits(backbone, x))


@pytest.mark.parametrize("strategy", [pt.LoRA(rank=2) + pt.IA3(), pt.Compacter(reads="sum")], ids=repr)
def test_a_plain_module_with_a_loaded_adapter_comes_back_and_merges(
    strategy: Strategy, tmp_path: Path
) -> None:
    pt.save_adapter(adapted("test_vit", strategy), tmp_path / "adapter")
    module = pt.load_adapter(make("test_vit").module, tmp_path / "adapter")
    x = images(160)
    back = pickle.loads(pickle.dumps(module))
    assert torch.equal(logits(back, x), logits(module, x))
    if not strategy.why_not_mergeable:
        torch.testing.assert_close(logits(pt.merge_adapter(back), x), logits(module, x))


IN_A_FRESH_PROCESS = """
import sys, torch, paretune as pt
from torch.utils.hooks import RemovableHandle
torch.set_num_threads(1)
model = torch.load(sys.argv[1], weights_only=False)
x, expected = torch.load(sys.argv[2])
hooks = [key for part in model.modules() for key in (*part._forward_hooks, *part._forward_pre_hooks)]
assert max(hooks) < RemovableHandle.next_id  # else a hook of the user may take the place of one of ours
with torch.no_grad():
    assert torch.equal(model(x), expected)
pt.remove_adapter(model)
assert pt.strategies.adaptation_of(model) is None
"""


@pytest.mark.slow
def test_a_model_works_in_a_process_that_has_not_made_it(tmp_path: Path) -> None:
    model = adapted("test_vit", pt.Compacter(reads="stream") + pt.LoRA(rank=1))
    x = images(160)
    torch.save(model, tmp_path / "model.pt")
    torch.save((x, logits(model, x)), tmp_path / "logits.pt")
    script = [
        sys.executable,
        "-c",
        IN_A_FRESH_PROCESS,
        str(tmp_path / "model.pt"),
        str(tmp_path / "logits.pt"),
    ]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_model_with_a_parametrization_of_its_own_is_refused_by_torch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    torch.nn.utils.parametrizations.weight_norm(model[0])
    backbone = pt.adapt(pt.Backbone(model.eval(), image_size=8), pt.LinearProbe())
    with pytest.raises(RuntimeError, match="state_dict"):
        pickle.dumps(backbone)


@pytest.mark.some(2)
@pytest.mark.parametrize(
    "strategy",
    [
        pt.Compacter(),
        pt.Compacter(reads="sum", shared_rule=False, activation="relu"),
        pt.Adapter(),
        pt.LoRA(rank=1),
        pt.VisualPrompt(kind="deep", size=2),
        pt.VisualPrompt(kind="shallow", size=2),
    ],
    ids=repr,
)
def test_graphs_are_exported_for_batches_of_any_size(strategy: Strategy) -> None:
    backbone = adapted("test_vit", strategy)
    example = (images(160),)
    graph = torch.export.export(
        backbone, example, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
    )
    x = torch.rand(3, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(logits(graph.module(), x), logits(backbone, x))


@pytest.mark.some(1)
@pytest.mark.parametrize("kind", ["shallow", "deep"])
@pytest.mark.parametrize("arch", ["hf_vit", "hf_dinov2"])
def test_prompts_of_transformers_are_exported_with_the_mask_that_export_makes(arch: str, kind: Any) -> None:
    backbone = adapted(arch, pt.VisualPrompt(kind=kind, size=2))
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    graph = torch.export.export(
        backbone, (images(32),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
    )
    torch.testing.assert_close(logits(graph.module(), x), logits(backbone, x))


@pytest.mark.slow
def test_prompts_of_transformers_are_written_as_onnx(tmp_path: Path) -> None:
    import onnxruntime

    backbone = adapted("hf_vit", pt.VisualPrompt(kind="deep", size=2))
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(
        pt.interchange.export_model(backbone, tmp_path / "model.onnx", "onnx")
    )
    (found,) = session.run(None, {"images": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), logits(backbone, x), rtol=1e-4, atol=1e-5)
