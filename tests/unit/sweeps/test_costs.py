"""What a run takes, counted and measured."""

from pathlib import Path

import pytest
import torch
from torch import nn

import paretune as pt
from paretune.strategies import trainable_parameters
from paretune.sweeps import costs
from paretune.sweeps.config import RunConfig
from paretune.sweeps.costs import Cost, Work, makespan, measured
from paretune.sweeps.entry import GivenRun
from paretune.training.objectives import read_objective
from tests import tiny

passes: list[int] = []  # images of every backward pass


class Counted(nn.Module):
    """Notes the images whose gradient comes back through it."""

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits * 1.0
        if logits.requires_grad:
            logits.register_hook(lambda gradient: passes.append(len(gradient)))
        return logits


def given(strategy: pt.strategies.Strategy, **options: object) -> GivenRun:
    """A run of the tiny network on the tiny data; its passes are counted."""
    module = nn.Sequential(*tiny.network().eval(), Counted())
    backbone = pt.Backbone(module, image_size=8, sites=["1.norm"], head="5")
    task = {"data": "tiny", "img_size": 8, "batch_size": 16, "epochs": 1.0, "points": 2}
    return GivenRun(**(task | options), strategy=strategy, objects=(tiny.data(), backbone))  # type: ignore[arg-type]


@pytest.mark.parametrize(("train_steps", "awp"), [(0, None), (2, None), (2, 0.01)])
def test_gradient_evaluations_are_those_that_training_makes(
    train_steps: int, awp: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in a real run: exact in training, an upper bound in evaluation."""
    config = given(pt.BitFit(), train_steps=train_steps, eval_steps=2, awp=awp)
    work = Work.of(config, tiny.data())
    original, evaluated = pt.training.loop.measure, 0

    def measure(*arguments: object) -> object:
        nonlocal evaluated
        before = sum(passes)
        status = original(*arguments)  # type: ignore[arg-type]
        evaluated += sum(passes) - before
        return status

    monkeypatch.setattr("paretune.training.loop.measure", measure)
    passes.clear()
    config.run(tmp_path, progress=False)
    assert sum(passes) - evaluated == work.training
    assert 0 < evaluated <= work.evaluation
    assert work.steps == config.steps(tiny.data())
    assert (work.attacked > 0) == (train_steps > 0)


def test_a_run_that_goes_on_has_the_rest_to_do() -> None:
    config, data = given(pt.BitFit(), train_steps=3, eval_steps=5), tiny.data()
    total = config.steps(data)
    whole, half, none = (Work.of(config, data, done) for done in (0, -(-total // 2), total))
    images = len(data.select) + len(data.report)
    assert whole.evaluation == 2 * images * 5
    assert half.evaluation == images * 5
    # The attack begins after a quarter of training, so that the second half has it in each step.
    assert half.training == 16 * half.steps * (1 + 3)
    assert (none.steps, none.training, none.evaluation) == (0, 0, 0)


def test_costs_are_measured_for_the_strategy_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "_ENOUGH", 0.0)
    config = given(pt.LoRA(rank=2), train_steps=1, eval_steps=3)
    passes.clear()
    state = torch.get_rng_state()
    cost = measured(config, tiny.data())
    assert torch.equal(torch.get_rng_state(), state)
    model = pt.adapt(config.load_backbone(10, 0), pt.LoRA(rank=2))
    assert cost.trainable_parameters == sum(each.numel() for each in trainable_parameters(model).values())
    assert cost.parameters == sum(each.numel() for each in model.module.parameters())
    assert min(cost.setup, cost.clean, cost.attacked, cost.evaluation) > 0
    assert cost.peak_memory_bytes > 1e6
    # Clean and attacked steps twice, and evaluation with one step before it counts.
    data = tiny.data()
    most = min(128, len(data.report))
    assert passes == [16] * 2 + [16, 16] * 2 + [most] * (1 + 3)
    attacked_always = given(
        pt.BitFit(), schedule=pt.training.EpsilonSchedule.fixed(), train_steps=1, eval_steps=1
    )
    assert measured(attacked_always, data, pixels=4 * 64).clean == 0.0
    assert passes[-1] == 4


def test_a_step_has_the_parts_and_the_precision_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "_ENOUGH", 0.0)
    data, kinds = tiny.data(), list[tuple[int, torch.dtype]]()
    config = given(
        pt.BitFit(),
        schedule=pt.training.EpsilonSchedule.fixed(),
        train_steps=1,
        eval_steps=1,
        accumulate=4,
        mixed_precision="bf16",
    )
    config.objects[1].module[-1].register_forward_hook(
        lambda layer, args, logits: kinds.append((len(logits), args[0].dtype)) if layer.training else None
    )
    passes.clear()
    measured(config, data)
    most = min(128, len(data.report))
    # Attacks are searched in float32, part by part, and then the losses of the parts follow.
    assert passes == [4] * 8 * 2 + [most] * 2
    assert kinds == [(4, torch.bfloat16)] * 4 * 2
    passes.clear()
    measured(config, data, pixels=9 * 64)  # two parts of a batch of nine
    assert passes[:4] == [5, 4, 5, 4]
    measured(config, data, pixels=3 * 64)
    assert passes[-3:] == [3, 3, 3]


def test_seconds_are_those_of_steps_attacks_and_points() -> None:
    cost = Cost(
        trainable_parameters=1,
        parameters=1,
        setup=5.0,
        clean=1.0,
        attacked=10.0,
        evaluation=0.5,
        peak_memory_bytes=1,
    )
    work = Work(steps=4, attacked=3, batch_size=2, training=0, evaluation=100)
    assert cost.seconds(work) == 5 + 2 * 1 + 6 * 10 + 50
    assert cost.seconds(Work(steps=0, attacked=0, batch_size=2, training=0, evaluation=0)) == 0


def test_a_worker_takes_the_next_run_when_it_is_free() -> None:
    assert makespan([3, 1, 1, 1], 2) == 3
    assert makespan([1, 1, 1, 3], 2) == 4
    assert makespan([2, 2, 2], 1) == 6


def test_the_demo_has_the_work_that_its_options_say() -> None:
    config = RunConfig()
    data = pt.load_data("digits", img_size=8, limit=1000)
    work = Work.of(config, data)
    steps = 5 * (len(data.train) // 32)
    assert work.steps == steps
    assert work.training == 32 * (steps + 3 * work.attacked)
    assert work.evaluation == 4 * (len(data.select) + len(data.report)) * 10


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "ATTA()", "augmentation": "flip"},
        {"objective": "TRADES() + 0.1*FARE() + L2SP()", "balance": "weights"},
        {"awp": 0.01, "accumulate": 2, "ema": 0.9},
    ],
)
def test_whatever_training_takes_can_be_measured(options: dict[str, object]) -> None:
    if "objective" in options:
        options = options | {"objective": read_objective(options["objective"])}
    cost = measured(given(pt.BitFit(), train_steps=1, eval_steps=1, **options), tiny.data())
    assert cost.attacked > 0
    assert cost.evaluation > 0


def test_what_training_refuses_is_refused_before_it_is_measured() -> None:
    objective = read_objective("ATTA()")
    with pytest.raises(ValueError, match="cannot carry perturbations"):
        measured(given(pt.BitFit(), objective=objective, augmentation="randaugment"), tiny.data())
