"""What is frozen stands still in every bit, and what thaws trains."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import paretune as pt
from paretune._values import from_dict, parse
from paretune.backbones import Site
from paretune.runs.progress import Status
from paretune.strategies import trainable_parameters
from paretune.training import (
    FREEZING,
    LPFT,
    AdamW,
    EpsilonSchedule,
    Freezing,
    GradualUnfreezing,
    Natural,
    NoFreezing,
    RoLI,
)
from tests import tiny
from tests.unit.training.test_loop import same_run

HEAD = "5"
CLEAN: dict[str, Any] = {"objective": Natural(), "eval_every": 10}


def snapshots(out: Path, model: pt.Backbone, **changes: Any) -> list[dict[str, Tensor]]:
    """Everything in the network before training and after each step."""

    def all_tensors() -> dict[str, Tensor]:
        return {name: value.clone() for name, value in model.module.state_dict().items()}

    seen = [all_tensors()]
    tiny.run(out, model=model, progress=lambda status: seen.append(all_tensors()), **changes)
    return seen


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def two_blocks() -> pt.Backbone:
    """The tiny network with a second residual block; the head is layer 6."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stem, block, *rest = tiny.network().eval()
        module = nn.Sequential(stem, block, copy.deepcopy(block), *rest)
    sites = [Site(f"{block}.norm", "output", "conv", 8, 1, block) for block in ("1", "2")]
    backbone = pt.Backbone(module, image_size=8, sites=sites)
    return pt.adapt(backbone, pt.FullFineTune(bn="adapt"))


def test_the_probe_moves_the_head_alone_and_then_everything_moves(tmp_path: Path) -> None:
    """Weight decay and the running statistics of batch norms that adapt included."""
    model = tiny.backbone(pt.FullFineTune(bn="adapt"))
    seen = snapshots(tmp_path / "run", model, freezing=LPFT(0.4))
    for step in range(1, 5):
        assert moved(seen[step - 1], seen[step]) == {f"{HEAD}.weight", f"{HEAD}.bias"}, step
    assert moved(seen[4], seen[5]) == {*seen[0]}
    log = [json.loads(line)["epsilon"] for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert log[:4] == [0.0] * 4
    # Two hinges, at 0.25 and 0.75 of the six steps that follow.
    rising = [0, 0, 1 / 3, 2 / 3, 1, 1]
    assert log[4:] == pytest.approx([factor * 4 / 255 for factor in rising])


@pytest.mark.parametrize("freezing", [LPFT(0.4), RoLI(0.4)], ids=repr)
def test_the_head_after_the_probe_is_the_one_that_probing_alone_gives(
    tmp_path: Path, freezing: Freezing
) -> None:
    """So the phase has a warm-up and a decay of its own, and the strength that the paper gives it."""
    seen = snapshots(tmp_path / "run", tiny.backbone(pt.FullFineTune(bn="adapt")), freezing=freezing)
    probe = tiny.backbone(pt.LinearProbe())
    objective = {"objective": Natural()} if isinstance(freezing, LPFT) else {}
    tiny.run(tmp_path / "probe", model=probe, steps=4, epsilon=EpsilonSchedule.fixed(), **objective)
    for name, value in trainable_parameters(probe).items():
        assert not torch.equal(seen[0][name], value)
        torch.testing.assert_close(seen[4][name], value, rtol=0, atol=1e-6)


def test_what_is_frozen_has_no_moments(tmp_path: Path) -> None:
    held: dict[int, set[str]] = {}

    def look(status: Status) -> None:
        if status.step in (4, 8):
            with safe_open(tmp_path / "run/checkpoint.safetensors", framework="pt") as file:
                held[status.step] = {name for name in file.keys() if name.endswith("/exp_avg")}  # noqa: SIM118

    model = tiny.backbone(pt.FullFineTune())
    tiny.run(tmp_path / "run", model=model, freezing=LPFT(0.5), progress=look)
    assert {step: len(names) for step, names in held.items()} == {4: 2, 8: len(trainable_parameters(model))}


def test_the_peak_of_the_probe_is_its_own(tmp_path: Path) -> None:
    """The first step of AdamW is as long as the learning rate."""
    lengths = []
    for rate in (1e-3, 1e-2):
        model = tiny.backbone(pt.FullFineTune())
        flat = AdamW(1e-4, warmup=0.0, schedule="constant", weight_decay=0.0, clip=None)
        seen = snapshots(
            tmp_path / str(rate), model, freezing=LPFT(0.5, rate), optimizer=flat, steps=2, **CLEAN
        )
        first = (seen[1][f"{HEAD}.bias"] - seen[0][f"{HEAD}.bias"]).abs().max()
        other = (seen[2]["0.bias"] - seen[1]["0.bias"]).abs().max()
        assert float(other) == pytest.approx(1e-4, rel=0.01)
        lengths.append(float(first))
    assert lengths == pytest.approx([1e-3, 1e-2], rel=0.01)


def test_blocks_thaw_one_by_one_from_the_last(tmp_path: Path) -> None:
    """Two blocks: four stages, of which the head's, the last block's and the first block's are as long."""
    seen = snapshots(tmp_path / "run", two_blocks(), freezing=GradualUnfreezing(0.6), **CLEAN)
    for step in range(1, 11):
        done = (step - 1) / 10
        layers = {"6"} | ({"2"} if done >= 0.2 else set()) | ({"1"} if done >= 0.4 else set())
        layers |= {"0"} if done >= 0.6 else set()
        assert {name.partition(".")[0] for name in moved(seen[step - 1], seen[step])} == layers, step
        everything = {name for name in seen[0] if name.partition(".")[0] in layers}
        assert moved(seen[step - 1], seen[step]) == everything, step


@pytest.mark.parametrize("freezing", [LPFT(0.6), RoLI(0.5), GradualUnfreezing(0.9)], ids=repr)
def test_a_stopped_run_thaws_when_a_whole_one_does(tmp_path: Path, freezing: Freezing) -> None:
    def interrupt(status: Status) -> None:
        if status.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path / "stopped", model=two_blocks(), freezing=freezing, progress=interrupt)
    tiny.run(tmp_path / "stopped", model=two_blocks(), freezing=freezing)
    tiny.run(tmp_path / "whole", model=two_blocks(), freezing=freezing)
    same_run(tmp_path / "stopped", tmp_path / "whole")
    with pytest.raises(ValueError, match="freezing"):
        tiny.run(tmp_path / "whole", model=two_blocks())


def test_a_parameter_that_would_never_train_is_found_in_the_probe_too(tmp_path: Path) -> None:
    model = tiny.backbone(pt.FullFineTune())
    model.module[1].register_parameter("unused", nn.Parameter(torch.zeros(1)))
    record = model.module._paretune_adaptation
    record.trained = (*record.trained, "1.unused")
    with pytest.raises(ValueError, match=r"1 of \d+ trainable parameters got no gradient"):
        tiny.run(tmp_path / "run", model=model, freezing=LPFT(0.5))


@pytest.mark.parametrize(
    ("freezing", "changes", "message"),
    [
        (LPFT(0.01), {}, r"of 10 steps LPFT\(0\.01\) gives the head alone 0"),
        (LPFT(0.99), {}, "gives the head alone 10"),
        (RoLI(), {"objective": Natural()}, "probes under attack, and the objective has none"),
        (LPFT(0.5), {"epsilon": EpsilonSchedule.auto(1)}, "after 2 epochs at the earliest"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(
    tmp_path: Path, freezing: Freezing, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.run(tmp_path / "run", freezing=freezing, **changes)
    assert not (tmp_path / "run").exists()


def test_a_network_without_known_blocks_cannot_thaw_block_by_block_but_can_be_probed(tmp_path: Path) -> None:
    def plain() -> pt.Backbone:
        return pt.adapt(pt.Backbone(tiny.network().eval(), image_size=8), pt.FullFineTune())

    with pytest.raises(ValueError, match=r"name them with Backbone\(module, sites="):
        tiny.run(tmp_path / "run", model=plain(), freezing=GradualUnfreezing())
    assert not (tmp_path / "run").exists()
    tiny.run(tmp_path / "run", model=plain(), freezing=LPFT(), **CLEAN)


@pytest.mark.parametrize(
    ("text", "freezing"),
    [
        ("lp_ft", LPFT()),
        ("LPFT(0.3, lr=1e-2)", LPFT(0.3, 1e-2)),
        ("roli(0.5)", RoLI(0.5)),
        ("gradual_unfreezing", GradualUnfreezing()),
        ("NoFreezing()", NoFreezing()),
    ],
)
def test_it_is_read_from_its_name_and_from_its_text(text: str, freezing: Freezing) -> None:
    assert parse(text, FREEZING) == parse(repr(freezing), FREEZING) == freezing
    assert from_dict(freezing.to_dict(), FREEZING) == freezing


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lpft(0)", "probe must be a fraction"),
        ("roli(1)", "probe must be"),
        ("lpft(lr=0)", "lr must be above 0"),
        ("gradual_unfreezing(1.5)", "end must be a fraction"),
    ],
)
def test_a_field_out_of_range_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text, FREEZING)
