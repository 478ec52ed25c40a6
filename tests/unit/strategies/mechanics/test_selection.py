"""The field ``where`` means the same to every strategy."""

import pytest
import torch

import paretune as pt
from paretune.strategies import Strategy
from tests.contracts.backbones import make


def trained(strategy: Strategy, arch: str = "test_vit") -> set[str]:
    """Names of the trained parameters outside the head."""
    return set(pt.strategies.trainable_parameters(pt.adapt(make(arch), strategy), head=False))


@pytest.mark.some(10)
@pytest.mark.parametrize(
    "strategy",
    [pt.FullFineTune, pt.BitFit, pt.strategies.NormTune, pt.LoRA, pt.IA3, pt.Compacter, pt.Adapter],
)
@pytest.mark.parametrize(
    ("where", "first"), [("last:2", 4), ("blocks.4*", 4), (("blocks.4.*", "blocks.5.*"), 4)]
)
def test_only_what_is_named_trains(
    strategy: type[Strategy], where: str | tuple[str, ...], first: int
) -> None:
    names = trained(strategy(where=where))
    assert names
    numbers = {int(name.split(".")[1]) for name in names}
    assert numbers <= set(range(first, 6))
    assert {name.split(".")[0] for name in names} == {"blocks"}
    # The rule that all Compacter modules share bears the name of the first of them.
    assert {name for name in names if not name.endswith(".rule")} < trained(strategy())


def test_attention_and_mlp_share_the_branches_among_them() -> None:
    whole = trained(pt.LoRA(targets="linear"))
    attention, mlp = (trained(pt.LoRA(targets="linear", where=part)) for part in ("attention", "mlp"))
    assert attention | mlp == whole
    assert not attention & mlp
    assert all(".attn." in name for name in attention)


def test_conditions_joined_by_an_ampersand_hold_together() -> None:
    both = trained(pt.BitFit(where="last:2 & attention"))
    assert both == trained(pt.BitFit(where="last:2")) & trained(pt.BitFit(where="attention"))
    assert both


def test_entries_add_up() -> None:
    assert trained(pt.BitFit(where=("first:1", "last:1"))) == trained(pt.BitFit(where="first:1")) | trained(
        pt.BitFit(where="last:1")
    )


def test_partial_fine_tuning_is_full_fine_tuning_of_a_part() -> None:
    backbone = make("test_vit")
    expected = {name for name, _ in backbone.module.named_parameters() if name.startswith("blocks.5.")}
    assert trained(pt.FullFineTune(where="blocks.5")) == expected


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("last:0", "at least 1"),
        ("last:x", "at least 1"),
        ((), "where must be"),
        ("", "where must be"),
        (3, "where must be"),
    ],
)
def test_entries_that_mean_nothing_are_refused(where: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pt.BitFit(where=where)


@pytest.mark.parametrize(
    ("arch", "where", "message"),
    [
        ("test_vit", "last:99", "more residual blocks than the 6 known"),
        ("test_vit", "block.*", "matches no module or parameter; candidates: patch_embed"),
        ("resnet18", "attention", "no attention branch is known in ResNet"),
        ("vgg11", "last:1", "more residual blocks than the 0 known"),
    ],
)
def test_what_a_model_does_not_have_is_refused_by_name_and_the_model_stays(
    arch: str, where: str, message: str
) -> None:
    backbone = make(arch)
    names = list(backbone.module.state_dict())
    with pytest.raises(ValueError, match=message):
        pt.adapt(backbone, pt.LoRA(where=where))
    assert list(backbone.module.state_dict()) == names
    assert all(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("strategy", [pt.LinearProbe, pt.VisualPrompt])
def test_strategies_without_a_place_take_none(strategy: type[Strategy]) -> None:
    with pytest.raises(ValueError, match="takes no where"):
        strategy(where="last:1")


def test_a_model_with_parametrizations_of_its_own_trains_in_full_and_takes_no_difference_there() -> None:
    backbone = make("test_vit")
    torch.nn.utils.parametrizations.weight_norm(backbone.module.get_submodule("blocks.0.mlp.fc1"))
    every = {name for name, _ in backbone.module.named_parameters()}
    assert "blocks.0.mlp.fc1.parametrizations.weight.original1" in every
    assert set(pt.strategies.trainable_parameters(pt.adapt(backbone, pt.FullFineTune()))) == every
    pt.remove_adapter(backbone)
    with pytest.raises(ValueError, match="has parametrizations of its own"):
        pt.adapt(backbone, pt.LoRA())
    assert {name for name, _ in backbone.module.named_parameters()} == every
