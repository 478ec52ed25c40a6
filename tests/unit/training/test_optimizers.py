"""Learning rates over training, against torch, transformers and timm; and over the network, against timm and by hand."""

import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm.optim
import torch
import transformers
from timm.scheduler import CosineLRScheduler
from torch import nn

import paretune as pt
from paretune.training.optimizers import AdamW
from paretune.training.plan import Plan
from tests import tiny
from tests.contracts import backbones
from tests.unit.training.test_loop import ROOT, same_run

STEPS, RISING = 40, 8


def sgd(lr: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def of_transformers(name: str) -> Any:
    """The factor at a step, which may lie between two."""
    rising: dict[str, Any] = {"num_warmup_steps": RISING}
    if name != "constant":
        rising["num_training_steps"] = STEPS
    suffix = "_schedule_with_warmup"
    return getattr(transformers, f"get_{name}{suffix}")(sgd(), **rising).lr_lambdas[0]


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_schedules_are_those_of_transformers_in_the_middle_of_each_step(name: Any) -> None:
    plan: Any = SimpleNamespace(
        total=STEPS,
        objective=pt.training.Natural(),
        epsilon=pt.EpsilonSchedule.two_hinge(),
        freezing=pt.training.NoFreezing(),
        per_epoch=1,
        seed=0,
        lr=0.3,
        strength=lambda step, clean: 0.0,
        optimizer=AdamW(warmup=RISING / STEPS, schedule=name),
    )
    theirs = of_transformers(name)
    for step in range(1, STEPS + 1):
        assert Plan.at(plan, step, ())[1] == pytest.approx(0.3 * theirs(step - 0.5), abs=1e-12)


def test_the_cosine_is_that_of_timm() -> None:
    scheduler = CosineLRScheduler(
        sgd(), t_initial=STEPS - RISING, warmup_t=RISING, warmup_lr_init=0.0, warmup_prefix=True
    )
    ours = AdamW(warmup=RISING / STEPS)
    for step in range(STEPS):
        assert ours.factor(step / STEPS) == pytest.approx(scheduler._get_lr(step)[0], abs=1e-12)


@pytest.mark.parametrize("pct_start", [0.1, 0.3, 0.5])
def test_one_cycle_is_that_of_torch_on_its_grid_of_steps(pct_start: float) -> None:
    """Torch's first step is at 0 of training, its last at 1, and the peak at step ``pct_start * STEPS - 1``."""
    optimizer = sgd()
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=0.3,
        total_steps=STEPS,
        pct_start=pct_start,
        anneal_strategy="cos",
        div_factor=25,
        final_div_factor=1e4,
        cycle_momentum=False,
    )
    ours = AdamW(warmup=(pct_start * STEPS - 1) / (STEPS - 1), schedule="one-cycle")
    for step in range(STEPS):
        assert 0.3 * ours.factor(step / (STEPS - 1)) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        if step < STEPS - 1:
            scheduler.step()


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "one-cycle"])
def test_without_a_warm_up_training_starts_at_the_peak(name: Any) -> None:
    assert AdamW(warmup=0, schedule=name).factor(0.0) == 1.0


@pytest.mark.parametrize(
    "fields",
    [
        *({name: value} for name in ("lr", "head_lr") for value in (0, 11, -0.1, math.nan, math.inf)),
        *({"warmup": value} for value in (1.0, -0.1, math.nan)),
        *({"weight_decay": value} for value in (-1, math.nan, math.inf)),
        *({"schedule": value} for value in ("step", "none", None)),
        *({"clip": value} for value in (0, -1, math.nan)),
        *({"layer_decay": value} for value in (0, -0.5, 1.01, math.nan)),
    ],
    ids=repr,
)
def test_an_optimizer_out_of_range_names_the_field_and_the_value(fields: dict[str, Any]) -> None:
    ((name, value),) = fields.items()
    with pytest.raises(ValueError, match=rf"^{name} .*got {value!r}"):
        AdamW(**fields)


def factors(model: pt.Backbone, optimizer: AdamW, lr: float = 0.01) -> dict[str, float]:
    """The factor of each trained parameter, each of which is in one group, at its own rate, decaying if it is a matrix."""
    names = {id(parameter): name for name, parameter in pt.strategies.trainable_parameters(model).items()}
    found: dict[str, float] = {}
    for group in optimizer.build(model, lr).param_groups:
        assert group["lr"] == lr * group["factor"]
        for parameter in group["params"]:
            assert group["weight_decay"] == (optimizer.weight_decay if parameter.ndim > 1 else 0)
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = group["factor"]
    assert found.keys() == set(names.values())
    return found


@pytest.mark.parametrize(
    ("name", "not_in_timm"),
    [
        ("test_vit", ()),
        ("resnet18", ()),
        ("swin_tiny_patch4_window7_224", ()),
        # The norm behind the last block, which timm counts with the last block in a ViT, and here with the head.
        ("convnext_atto", ("head.norm.weight", "head.norm.bias")),
        ("beit_base_patch16_224", ("fc_norm.weight", "fc_norm.bias")),
    ],
)
def test_rates_decay_layer_by_layer_as_in_timm(name: str, not_in_timm: tuple[str, ...]) -> None:
    model = pt.adapt(backbones.make(name), pt.FullFineTune())
    found = factors(model, AdamW(layer_decay=0.7))
    names = {id(parameter): key for key, parameter in model.module.named_parameters()}
    expected = {
        names[id(parameter)]: group["lr_scale"]
        for group in timm.optim.param_groups_layer_decay(model.module, layer_decay=0.7)
        for parameter in group["params"]
    }
    assert all(found[key] == pytest.approx(0.7 * expected.pop(key)) for key in not_in_timm)
    assert {key: found[key] for key in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    "strategy",
    [
        pt.LoRA(rank=2),
        pt.BitFit(),
        pt.LoRA(rank=2) + pt.BitFit(),
        pt.Compacter(reduction=4),
        pt.VisualPrompt(),
    ],
    ids=repr,
)
def test_what_a_strategy_adds_moves_as_the_block_it_is_in(strategy: pt.strategies.Strategy) -> None:
    model = pt.adapt(backbones.make("vit_tiny_patch16_224"), strategy)
    found = factors(model, AdamW(layer_decay=0.5))
    for name, factor in found.items():
        block = name.split(".")[1]
        shared = name.endswith("rule")
        depth = 13 if "head" in name else 1 if shared else 12 if name.startswith("norm.") else 0
        depth = int(block) + 1 if block.isdecimal() and not shared else depth
        assert factor == 0.5 ** (13 - depth), name


def test_the_head_has_its_own_rate_and_layers_decay_beside_it() -> None:
    model = pt.adapt(backbones.make("test_vit"), pt.BitFit())
    found = factors(model, AdamW(layer_decay=0.5, head_lr=0.04))
    assert {name for name, factor in found.items() if factor == 4} == {"head.weight", "head.bias"}
    assert found["blocks.5.mlp.fc2.bias"] == 0.5
    assert found["blocks.0.mlp.fc2.bias"] == 0.5**6
    assert set(factors(model, AdamW(head_lr=0.04)).values()) == {1.0, 4.0}
    assert set(factors(model, AdamW()).values()) == {1.0}


def test_layers_decay_only_where_blocks_are_known(tmp_path: Path) -> None:
    model = pt.adapt(pt.Backbone(tiny.network().eval(), image_size=8), pt.FullFineTune())
    with pytest.raises(ValueError, match=r"^layer_decay=0.5: no residual blocks .*sites=.*layer_decay=1.0"):
        tiny.run(tmp_path / "run", model=model, optimizer=AdamW(layer_decay=0.5))
    assert not (tmp_path / "run").exists()


def test_training_moves_each_group_at_its_own_rate(tmp_path: Path) -> None:
    """The first step of Adam moves each number by its learning rate, whatever the gradient."""
    model = tiny.backbone(pt.FullFineTune())
    before = {
        name: value.detach().clone() for name, value in pt.strategies.trainable_parameters(model).items()
    }
    optimizer = AdamW(
        1e-3, warmup=0, schedule="constant", weight_decay=0, clip=None, layer_decay=0.5, head_lr=4e-3
    )
    tiny.run(tmp_path / "run", model=model, optimizer=optimizer, objective=pt.training.Natural(), steps=1)
    moved = {
        name: float((value.detach() - before[name]).abs().max())
        for name, value in pt.strategies.trainable_parameters(model).items()
    }
    # The site is the norm of the block, so that the convolution before it counts with the stem.
    rates = {"0": 0.25e-3, "1.conv": 0.25e-3, "1.norm": 0.5e-3, "5": 4e-3}
    assert moved == {name: pytest.approx(rates[name.rpartition(".")[0]], rel=1e-2) for name in moved}


KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
import paretune as pt
from tests import tiny
from tests.unit.training.test_optimizers import RATES
tiny.run(sys.argv[1], getattr(pt, sys.argv[2])(), optimizer=RATES,
         progress=lambda status: os.kill(os.getpid(), signal.SIGKILL) if status.step == 6 else None)
"""
RATES = AdamW(5e-3, schedule="one-cycle", layer_decay=0.5, head_lr=0.02)


@pytest.mark.slow
@pytest.mark.some(1)
@pytest.mark.parametrize("strategy", [pt.FullFineTune(), pt.LoRA()], ids=repr)
def test_a_killed_run_with_rates_by_layer_ends_as_if_it_had_not_been(tmp_path: Path, strategy: Any) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(out), type(strategy).__name__]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (out / "checkpoint.safetensors").exists()
    with pytest.raises(ValueError, match=r"layer_decay"):
        tiny.run(out, strategy, optimizer=replace(RATES, layer_decay=0.6))
    tiny.run(out, strategy, optimizer=RATES)
    tiny.run(tmp_path / "whole", strategy, optimizer=RATES)
    same_run(out, tmp_path / "whole")
