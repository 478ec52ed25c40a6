"""A tensor that several layers share is one tensor to every strategy, or the strategy refuses before anything changes."""

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

import paretune as pt
from paretune.interchange import save_loralib, save_peft
from paretune.strategies import SSF, LNLoRA, Strategy
from tests.contracts.backbones import images, make
from tests.contracts.contract import check, logits, perturb
from tests.contracts.tied import TIES, make_tied, sharing, untied

STRATEGIES = [
    pt.FullFineTune(),
    pt.FullFineTune(bn="adapt"),
    pt.LinearProbe(bn="adapt"),
    pt.BitFit(),
    pt.strategies.NormTune(),
    pt.LoRA(rank=2),
    pt.IA3(targets=("[ac]", "stem")),
    SSF(where="[ac]"),
    pt.LoRA(rank=2) + pt.BitFit(),
    pt.LoRA(rank=2, targets="[ab]") + pt.LoRA(rank=1) + pt.IA3(targets="[a]"),
    pt.Compacter(n=2, reduction=2),
    pt.Adapter() + pt.strategies.NormTune(),
    LNLoRA(rank=2),
]


@pytest.mark.some
@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
@pytest.mark.parametrize("tie", TIES)
def test_the_contract_holds_and_the_tie_comes_back(tie: str, strategy: Strategy, tmp_path: Path) -> None:
    base = make_tied(tie)
    check(base, strategy, tmp_path / "adapter")
    model = pt.adapt(copy.deepcopy(base), strategy)
    perturb(model)
    after = logits(model, images(16))
    if not strategy.why_not_mergeable:
        merged = pt.merge_adapter(copy.deepcopy(model))
        assert sharing(merged) == sharing(base)
        torch.testing.assert_close(logits(merged, images(16)), after)
        file = load_file(pt.interchange.save_merged(model, tmp_path / "merged.safetensors"))
        for plain in (copy.deepcopy(base), untied(base)):
            plain.module.load_state_dict(file)
            torch.testing.assert_close(logits(plain, images(16)), after)
    assert sharing(pt.remove_adapter(model)) == sharing(base)
    assert model.fingerprint == base.fingerprint


@pytest.mark.parametrize("where", ["a", "b", "*.weight", "b.weight"])
def test_a_tensor_is_meant_by_any_of_its_names(where: str) -> None:
    model = pt.adapt(make_tied("weight"), pt.FullFineTune(where=where))
    assert "a.weight" in pt.strategies.trainable_parameters(model)
    if "." not in where:
        model = pt.adapt(make_tied("weight"), pt.LoRA(rank=2, targets=f"[{where}]"))
        assert pt.strategies.trainable_parameters(model, head=False).keys() == {
            f"a.parametrizations.weight.0.lora_{letter}" for letter in "AB"
        }
        net: Any = model.module
        perturb(model)
        assert torch.equal(net.a.weight, net.b.weight)


@pytest.mark.some
@pytest.mark.parametrize("tie", ["weight", "layer", "embedding", "weight and bias"])
@pytest.mark.parametrize(
    "other", [pt.BitFit(), pt.FullFineTune(), pt.IA3(targets="[a]"), pt.Compacter(n=2, reduction=2)]
)
def test_named_adapters_take_turns_and_combine(tie: str, other: Strategy) -> None:
    base, x = make_tied(tie), images(16)
    adapters = pt.interchange.AdapterSet(copy.deepcopy(base))
    net: Any = adapters.model.module
    expected, weights = {}, []
    for seed, (name, strategy) in enumerate((("one", pt.LoRA(rank=2)), ("two", other))):
        adapters.add(name, strategy, seed=seed)
        adapters.activate(name)
        perturb(adapters.model, 0.1)  # type: ignore[arg-type]
        expected[name] = logits(adapters.model, x)
        weights.append(net.a.weight.detach().clone())
    for _ in range(2):
        mixed = adapters(x, ["one", "two"])
        torch.testing.assert_close(mixed, torch.stack([expected["one"][0], expected["two"][1]]))
        for name, after in expected.items():
            adapters.activate({name: 1.0})
            torch.testing.assert_close(logits(adapters.model, x), after)
            adapters.activate(name)
            assert torch.equal(logits(adapters.model, x), after)
    adapters.activate({"one": 0.5, "two": 0.5}, head="one")
    if not other.why_not_mergeable:
        torch.testing.assert_close(net.a.weight, sum(weights) / 2)
    adapters.activate(None)
    assert sharing(adapters.model) == sharing(base)  # type: ignore[arg-type]
    assert torch.equal(logits(adapters.model, x), logits(base, x))


def _head_weight(net: Any) -> None:
    net.head = nn.Linear(8, 8)
    net.head.weight = net.a.weight


def _view(net: Any) -> None:
    net.b.weight = nn.Parameter(net.a.weight.detach().T)


def _buffer(net: Any) -> None:
    net.register_buffer("kept", net.a.weight.detach()[2:])


def _held_as_buffer(net: Any) -> None:
    weight = net.b.weight
    del net.b.weight
    net.b._buffers["weight"] = weight


@pytest.mark.parametrize(
    ("tie", "strategy", "message"),
    [
        (_head_weight, pt.LoRA(), r"shares its weight with 'a.weight'.*model.head.weight = "),
        (_head_weight, pt.LinearProbe(), "shares its weight"),
        (_view, pt.LoRA(), "a.weight and b.weight are views of one memory"),
        (_view, pt.FullFineTune(where="b"), "a.weight and b.weight are views of one memory"),
        (
            _view,
            pt.strategies.Peft({"peft_type": "LOHA", "r": 1, "target_modules": ["a"]}),
            "views of one memory",
        ),
        (_buffer, pt.IA3(targets="[a]"), "a.weight and kept are views of one memory"),
        (_held_as_buffer, pt.LoRA(), "'weight' of a Linear is no parameter|no parameter of it"),
        ("weight", pt.LoRA(rank=2, rank_pattern={"b": 3}), "'a' and 'b' share one weight, .* in two ways"),
        ("bias", pt.IA3(targets="[ab]"), "'b' shares its bias with another layer, .* in another way"),
    ],
    ids=lambda value: getattr(value, "__name__", repr(value)),
)
def test_what_cannot_be_done_is_refused_before_anything_changes(
    tie: Any, strategy: Strategy, message: str
) -> None:
    base = make_tied(tie)
    before, names = sharing(base), list(base.module.state_dict())
    expected = logits(base, images(16))
    with pytest.raises(ValueError, match=message):
        pt.adapt(base, strategy)
    assert sharing(base) == before
    assert list(base.module.state_dict()) == names
    assert torch.equal(logits(base, images(16)), expected)


def test_neighbours_in_one_memory_are_no_views_of_each_other(tmp_path: Path) -> None:
    def flat(net: Any) -> None:
        memory = torch.randn(16, 8)
        net.a.weight, net.b.weight = nn.Parameter(memory[:8]), nn.Parameter(memory[8:])

    check(make_tied(flat), pt.LoRA(rank=2), tmp_path / "adapter")


def test_a_base_whose_shared_tensor_is_replaced_may_have_another(tmp_path: Path) -> None:
    model = pt.adapt(make_tied("weight"), pt.FullFineTune(where="a"))
    perturb(model)
    pt.save_adapter(model, tmp_path / "adapter")
    other = make_tied("weight")
    with torch.no_grad():
        other.module.get_parameter("a.weight").zero_()
    pt.load_adapter(other, tmp_path / "adapter")
    assert torch.equal(logits(other, images(16)), logits(model, images(16)))


def test_a_head_with_two_names_is_no_part_of_the_digests(tmp_path: Path) -> None:
    model = pt.adapt(make_tied("head"), pt.LoRA(rank=2))
    perturb(model)
    pt.save_adapter(model, tmp_path / "adapter")
    fresh = make_tied("head")
    with torch.no_grad():
        fresh.module.get_parameter("head.weight").zero_()
    pt.load_adapter(fresh, tmp_path / "adapter")
    assert torch.equal(logits(fresh, images(16)), logits(model, images(16)))


def test_the_head_may_be_named_by_its_second_name() -> None:
    net: Any = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten())
    net.first = nn.Linear(4, 5)
    net.second = net.first
    assert pt.Backbone(net, head="second").head == "first"


@pytest.mark.parametrize("tie", ["weight", "layer", "three weights"])
def test_other_libraries_know_no_shared_tensor(tie: str, tmp_path: Path) -> None:
    model = pt.adapt(make_tied(tie), pt.LoRA(rank=2))
    perturb(model)
    pt.save_adapter(model, tmp_path / "own")
    assert (
        "an adapter for each layer" in json.loads((tmp_path / "own/paretune.json").read_text())["peft_reason"]
    )
    with pytest.raises(ValueError, match="an adapter for each layer"):
        save_peft(model, tmp_path / "peft")
    with pytest.raises(ValueError, match="an adapter for each layer"):
        save_loralib(model, tmp_path / "loralib.pt")


@pytest.mark.parametrize("targets", [["a"], ["a", "b"], ["b"]])
def test_an_adapter_of_peft_on_one_of_several_layers_is_refused(targets: list[str], tmp_path: Path) -> None:
    base = make_tied("weight")
    config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    peft.get_peft_model(copy.deepcopy(base.module), config).save_pretrained(tmp_path)
    expected = logits(base, images(16))
    with pytest.raises(ValueError, match=r"'a' and 'b' share one weight|does not fit"):
        pt.import_adapter(base, tmp_path)
    assert torch.equal(logits(base, images(16)), expected)


@pytest.mark.parametrize("shared", ["weight", "block"])
def test_an_exported_model_of_timm_has_the_tensors_under_each_name(shared: str, tmp_path: Path) -> None:
    base = make("test_vit")
    blocks: Any = base.module.blocks
    for number in range(1, len(blocks)):
        if shared == "block":
            blocks[number] = blocks[0]
        else:
            blocks[number].mlp.fc1.weight = blocks[0].mlp.fc1.weight
    model = pt.adapt(base, pt.LoRA(rank=2))
    perturb(model)
    pt.interchange.export_model(model, tmp_path / "timm", "timm")
    plain = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    x = images(model.image_size)
    torch.testing.assert_close(logits(pt.Backbone(plain), x), logits(model, x))


def test_an_exported_model_of_transformers_has_the_tensors_under_each_name(tmp_path: Path) -> None:
    base = make("hf_vit")
    layers: Any = base.module.vit.layers
    layers[1].mlp.fc1.weight = layers[0].mlp.fc1.weight
    model = pt.adapt(base, pt.LoRA(rank=2))
    perturb(model)
    pt.interchange.export_model(model, tmp_path / "hf", "hf")
    plain = type(base.module).from_pretrained(tmp_path / "hf").eval()
    x = images(model.image_size)
    torch.testing.assert_close(logits(pt.Backbone(plain), x), logits(model, x))


@pytest.mark.parametrize("where", ["b", "b.weight", "norm_b", "other.inner"])
@pytest.mark.parametrize(
    "strategy",
    [pt.FullFineTune, pt.LoRA, pt.BitFit, pt.strategies.NormTune, pt.Adapter],
    ids=lambda s: s.__name__,
)
def test_a_layer_at_several_places_is_meant_by_any_of_its_names(
    strategy: Any, where: str, tmp_path: Path
) -> None:
    def ties(net: Any) -> None:
        TIES["layer"](net)
        net.other = nn.ModuleDict({"inner": net.a})

    first = {"norm_b": "norm_a", "b.weight": "a.weight"}.get(where, "a")
    means = {"norm_b": (pt.FullFineTune, pt.BitFit, pt.strategies.NormTune), "b.weight": (pt.FullFineTune,)}
    every = (pt.FullFineTune, pt.LoRA, pt.BitFit, pt.Adapter)
    if strategy not in means.get(where, every):
        with pytest.raises(ValueError, match=r"where="):
            pt.adapt(make_tied(ties), strategy(where=where))
        return
    model, named = (pt.adapt(make_tied(ties), strategy(where=each)) for each in (where, first))
    trained = pt.strategies.trainable_parameters(model, head=False).keys()
    assert trained == pt.strategies.trainable_parameters(named, head=False).keys() != set()
    together = pt.adapt(
        make_tied(ties), strategy(where=(where, "bn_a" if strategy is pt.strategies.NormTune else "c"))
    )
    assert trained <= pt.strategies.trainable_parameters(together, head=False).keys()
    perturb(model)
    pt.save_adapter(model, tmp_path / "adapter")
    fresh = pt.load_adapter(make_tied(ties), tmp_path / "adapter")
    assert torch.equal(logits(fresh, images(16)), logits(model, images(16)))


def test_a_target_may_be_the_second_name_of_a_layer() -> None:
    for strategy in (pt.LoRA(rank=2, targets="b"), pt.IA3(targets="b")):
        model = pt.adapt(make_tied("layer"), strategy)
        assert all(name.startswith("a.") for name in pt.strategies.trainable_parameters(model, head=False))
    with pytest.raises(ValueError, match="matches no Linear"):
        pt.adapt(make_tied("head"), pt.LoRA(targets="classifier"))


@pytest.mark.parametrize(
    ("name", "shape"), [("a.weight", (8, 1)), ("a.bias", (1,)), ("norm_a.weight", (1,)), ("a.weight", (1, 1))]
)
def test_a_tensor_whose_numbers_share_memory_can_stay_but_not_change(name: str, shape: Any) -> None:
    def expanded(net: Any) -> None:
        layer, _, own = name.rpartition(".")
        was = net.get_parameter(name)
        setattr(net.get_submodule(layer), own, nn.Parameter(torch.ones(shape).expand(was.shape)))

    base = make_tied("head")  # whose weights are not added to in place
    expanded(base.module)
    before = logits(base, images(16))
    for strategy in (pt.FullFineTune(), pt.BitFit() + pt.strategies.NormTune() + pt.LoRA(rank=2)):
        with pytest.raises(ValueError, match=f"{name} is expanded"):
            pt.adapt(base, strategy)
    assert torch.equal(logits(base, images(16)), before)
    pt.adapt(base, pt.LoRA(rank=2, where=("b", "c")))
