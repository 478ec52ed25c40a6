"""Strategies add up, and read back from what they print."""

import json

import pytest

import paretune as pt
from paretune._values import from_dict, parse, parse_many
from paretune.strategies import STRATEGIES, Strategy, Union
from tests.contracts.backbones import make

EXAMPLES = [
    pt.LoRA(rank=4) + pt.BitFit(),
    pt.LoRA(rank=4, where="attention") + pt.Adapter(where=("mlp",)) + pt.strategies.NormTune(),
    pt.LoRA(bn="adapt", rank_pattern={"a.*": 2}) + pt.BitFit(bn="adapt"),
    pt.strategies.Peft({"peft_type": "LOHA", "r": 4, "target_modules": ["qkv", "fc1"]}),
    pt.FullFineTune(where="last:2"),
    pt.VisualPrompt(kind="deep", size=3),
]


@pytest.mark.parametrize("strategy", EXAMPLES, ids=repr)
def test_a_strategy_reads_back_from_its_text_and_from_json(strategy: Strategy) -> None:
    assert parse(repr(strategy), STRATEGIES) == strategy
    assert from_dict(json.loads(json.dumps(strategy.to_dict())), STRATEGIES) == strategy
    assert hash(parse(repr(strategy), STRATEGIES)) == hash(strategy)


def test_a_union_prints_as_the_sum_that_makes_it() -> None:
    assert repr(pt.LoRA(rank=4) + pt.BitFit()) == "LoRA(rank=4) + BitFit()"
    assert parse_many("lora + bitfit, norm_tune", STRATEGIES) == (
        pt.LoRA() + pt.BitFit(),
        pt.strategies.NormTune(),
    )


def test_a_union_trains_what_its_parts_train() -> None:
    def trained(strategy: Strategy) -> set[str]:
        return set(pt.strategies.trainable_parameters(pt.adapt(make("test_vit"), strategy)))

    together = trained(pt.LoRA() + pt.BitFit())
    assert together == trained(pt.LoRA()) | trained(pt.BitFit())
    # A later strategy does not act on what an earlier one has added.
    assert trained(pt.Adapter() + pt.LoRA()) == trained(pt.Adapter()) | trained(pt.LoRA())


def test_the_order_does_not_change_how_many_parameters_train() -> None:
    sizes = {
        sum(
            p.numel()
            for p in pt.strategies.trainable_parameters(pt.adapt(make("test_vit"), strategy)).values()
        )
        for strategy in (pt.IA3() + pt.BitFit(), pt.BitFit() + pt.IA3())
    }
    assert len(sizes) == 1


def test_a_union_is_as_careful_as_its_most_careful_part_and_merges_if_all_do() -> None:
    union = pt.BitFit() + pt.FullFineTune()
    assert union.learning_rate == pt.FullFineTune.learning_rate
    assert union.why_not_mergeable == ""
    assert "Compacter: its bottlenecks are nonlinear" in (pt.LoRA() + pt.Compacter()).why_not_mergeable


def test_unions_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="must agree on bn"):
        pt.LoRA(bn="adapt") + pt.BitFit()
    with pytest.raises(ValueError, match="two strategies or more"):
        Union((pt.LoRA(),))
    with pytest.raises(TypeError, match="made of strategies"):
        Union((pt.LoRA(), "BitFit"))
    with pytest.raises(ValueError, match="Peft cannot be part of a union"):
        pt.LoRA() + pt.strategies.Peft({"peft_type": "LOHA"})
    with pytest.raises(TypeError, match="unsupported operand"):
        pt.LoRA() + 1
