"""The loop: it learns, resumes exactly, leaves global state alone and says what goes wrong."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import paretune as pt
from paretune.runs.store import load_runs
from paretune.training import measuring
from paretune.training.guards import TrainingDiverged
from tests import tiny

ROOT = Path(__file__).parents[3]
TIMINGS = ["train_seconds", "cpu_seconds", "attack_seconds", "peak_memory_bytes"]


def same_run(a: Path, b: Path) -> None:
    """Equal adapters, bits, logs, pictures and rows; only the clock may differ."""
    first, second = (
        load_file(a / "adapter/adapter_model.safetensors"),
        load_file(b / "adapter/adapter_model.safetensors"),
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    rows = [load_runs(path)[0].points.drop(columns=TIMINGS) for path in (a, b)]
    pd.testing.assert_frame_equal(*rows)
    for file in [*(a / "bits").iterdir()]:
        assert file.read_bytes() == (b / "bits" / file.name).read_bytes()
    for name in ("log.jsonl", "examples.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes()


def test_training_learns_and_writes_a_run(tmp_path) -> None:
    run = tiny.run(tmp_path / "run", steps=60, eval_every=30, epsilon=pt.EpsilonSchedule.two_hinge())
    assert run.done
    assert list(run.points.step) == [30, 60]
    assert run.points.clean.iloc[-1] > 0.6
    assert 0.1 < run.points.robust.iloc[-1] <= run.points.clean.iloc[-1]
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == list(range(1, 61))
    assert log[0]["epsilon"] == 0
    assert log[-1]["epsilon"] == pytest.approx(4 / 255)
    assert not (tmp_path / "run/checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    ("how", "least"),
    [
        pytest.param([], 20, id="killed", marks=pytest.mark.thorough),
        pytest.param(["everything"], 20, id="everything", marks=pytest.mark.slow),
        pytest.param(["full"], 20, id="full", marks=pytest.mark.thorough),
        pytest.param(["small"], 6, id="small", marks=pytest.mark.slow),
    ],
)
def test_a_run_stopped_at_every_change_of_the_disk_ends_as_if_it_had_not_been(
    tmp_path, how: list[str], least: int
) -> None:
    """Killed, or told that the disk is full, or that a file would be too large."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.killed", str(tmp_path / "killed"), *how],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= least
    tiny.run(tmp_path / "whole", **(tiny.everything() if how == ["everything"] else {}))
    same_run(tmp_path / "killed", tmp_path / "whole")
    assert not hidden(tmp_path / "killed")


def hidden(directory: Path) -> list[Path]:
    """Locks and what processes left half written."""
    return [*directory.rglob(".*")]


@pytest.mark.thorough
def test_a_run_killed_at_any_moment_of_starting_over_ends_as_if_it_had_not_been(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.killed", str(tmp_path), "over"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    resumed = [path for path in tmp_path.iterdir() if "-" in path.name]
    assert len(resumed) == int(done.stdout) >= 20
    for path in resumed:
        same_run(path, tmp_path / "finished")
        assert not hidden(path)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        tiny.run(tmp_path / name, seed=seed)
    same_run(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a/log.jsonl").read_text() != (tmp_path / "c/log.jsonl").read_text()


def test_a_finished_run_is_not_repeated_but_its_model_is_given_back(tmp_path) -> None:
    tiny.run(tmp_path / "run")
    stamp = (tmp_path / "run/points.jsonl").stat().st_mtime_ns
    model, data = tiny.backbone(pt.FullFineTune(bn="adapt")), tiny.data()
    fresh = model(data.report[:8][0])
    pt.train(
        model,
        data,
        pt.AdversarialTraining(pt.PGD(pt.Linf(4 / 255), steps=2)),
        out=tmp_path / "run",
        steps=10,
        eval_every=4,
        optimizer=pt.training.AdamW(5e-3),
        attacks=[pt.PGD(pt.Linf(4 / 255), steps=3)],
    )
    assert (tmp_path / "run/points.jsonl").stat().st_mtime_ns == stamp
    assert not torch.equal(model(data.report[:8][0]), fresh)
    points = load_runs(tmp_path / "run")[0].points
    scores = pt.evaluate(model, data.report, [pt.PGD(pt.Linf(4 / 255), steps=3)])
    assert scores.clean_accuracy == points.clean.iloc[-1]


def test_other_arguments_in_the_same_directory_are_refused_by_name(tmp_path) -> None:
    tiny.run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"another configuration: .*batch_size: 32 there, 16 here"):
        tiny.run(tmp_path / "run", batch_size=16)


def test_resume_false_starts_over(tmp_path) -> None:
    tiny.run(tmp_path / "run")
    before = (tmp_path / "run/log.jsonl").read_text()
    assert tiny.run(tmp_path / "run", resume=False).done
    assert (tmp_path / "run/log.jsonl").read_text() == before


def test_nan_stops_with_the_last_checkpoint_unharmed(tmp_path) -> None:
    model = tiny.backbone(pt.LinearProbe())

    def spoil(status) -> None:
        if status.step == 6:
            model.module[-1].weight.data[0, 0] = float("nan")

    with pytest.raises(TrainingDiverged, match="at step 7 with learning rate"):
        tiny.run(tmp_path / "run", model=model, progress=spoil)
    kept = load_file(tmp_path / "run/checkpoint.safetensors")
    assert all(torch.isfinite(value).all() for value in kept.values())
    assert not (tmp_path / "run/DONE").exists()
    assert tiny.run(tmp_path / "run", pt.LinearProbe()).done  # goes on from step 4


def test_a_damaged_checkpoint_is_named(tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path / "run", progress=lambda status: interrupt(status.step == 5))
    path = tmp_path / "run/checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"checkpoint .* is damaged .*delete it"):
        tiny.run(tmp_path / "run")


def interrupt(now: bool) -> None:
    if now:
        raise KeyboardInterrupt


def test_the_global_random_state_is_untouched_and_does_not_matter(tmp_path) -> None:
    torch.manual_seed(123)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    tiny.run(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    torch.manual_seed(9)
    tiny.run(tmp_path / "b")
    same_run(tmp_path / "a", tmp_path / "b")


def test_frozen_parameters_do_not_move_and_trained_ones_do(tmp_path) -> None:
    for strategy in (pt.LoRA(rank=2), pt.Compacter(reduction=2), pt.BitFit(), pt.LinearProbe()):
        model = tiny.backbone(strategy)
        before = {name: value.clone() for name, value in model.module.state_dict().items()}
        pt.train(
            model,
            tiny.data(),
            pt.training.Natural(),
            out=tmp_path / repr(strategy),
            steps=4,
            attacks=[pt.PGD(pt.Linf(1 / 255), steps=1)],
            progress=False,
        )
        trained = pt.strategies.trainable_parameters(model)
        moving = {parameter.data_ptr() for parameter in trained.values()}
        for name, value in model.module.state_dict().items():
            assert (not torch.equal(value, before[name])) == (value.data_ptr() in moving), (strategy, name)


def test_transfer_failure_is_reported(tmp_path, caplog) -> None:
    tiny.run(
        tmp_path / "run",
        objective=pt.AdversarialTraining(pt.PGD(pt.Linf(0.9), steps=2)),
        epsilon=pt.EpsilonSchedule.fixed(),
    )
    assert "transfer failure" in caplog.text
    assert "transfer failure" in (tmp_path / "run/DONE").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": None}, "either epochs or steps"),
        ({"epochs": 1}, "either epochs or steps"),
        ({"steps": 0}, "at least one step"),
        ({"attacks": []}, "attacks is empty"),
        ({"attacks": None, "objective": pt.training.Natural()}, "names no threat"),
        ({"eval_every": -1}, "eval_every"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_arguments_out_of_range_are_named_and_nothing_is_written(tmp_path, changes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.run(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_model_without_an_adapter_or_with_other_classes_is_refused(tmp_path) -> None:
    plain = pt.Backbone(tiny.network().eval(), image_size=8)
    with pytest.raises(ValueError, match="carries no adapter"):
        pt.train(plain, tiny.data(), pt.training.Natural(), out=tmp_path, steps=1)
    few = pt.data.ImageData.from_tensors(torch.rand(60, 3, 8, 8), torch.arange(60) % 3)
    with pytest.raises(ValueError, match="model has 10 classes"):
        pt.train(
            pt.adapt(plain, pt.LinearProbe()),
            few,
            pt.training.Natural(),
            out=tmp_path,
            steps=1,
            attacks=[pt.PGD(pt.Linf(0.1))],
        )


def test_any_attack_with_a_last_iterate_trains_and_one_without_is_refused(tmp_path) -> None:
    from paretune.attacks import APGD, FGSM, NFGSM, Square

    for attack in (APGD(pt.Linf(4 / 255), steps=2), FGSM(pt.Linf(4 / 255)), NFGSM(pt.Linf(4 / 255))):
        objective = pt.AdversarialTraining(attack)
        assert getattr(objective.attack, "keep", "last") == "last"
        run = tiny.run(tmp_path / type(attack).__name__, objective=objective, steps=4, eval_every=4)
        assert run.done
    with pytest.raises(ValueError, match="stops at the first success; train with PGD, APGD or FGSM"):
        pt.AdversarialTraining(Square(pt.Linf(4 / 255)))


def test_the_precision_of_attacks_is_kept_with_the_run(tmp_path) -> None:
    run = tiny.run(tmp_path / "run", steps=4, eval_every=2, precision="bf16")
    assert set(run.points.attack_precision) == {"bf16"}
    with pytest.raises(ValueError, match="attack_precision"):
        tiny.run(tmp_path / "run", steps=4, eval_every=2, precision="fp32")


@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_an_engine_that_gives_the_same_numbers_is_no_argument_of_the_run(tmp_path, engine: str) -> None:
    first = tiny.run(tmp_path / "first", steps=4, eval_every=2)
    other = tiny.run(tmp_path / "other", steps=4, eval_every=2, engine=engine)
    assert other.key == first.key
    assert other.points.robust.equals(first.points.robust)
    assert tiny.run(tmp_path / "first", steps=4, eval_every=2, engine=engine).done


def test_a_compiled_run_is_another_run(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    asked = []
    original = measuring.attack_copy
    monkeypatch.setattr(
        measuring,
        "attack_copy",
        lambda *args, **options: asked.append(original(*args, **options)) or asked[-1],
    )
    tiny.run(tmp_path / "run", steps=2, eval_every=2, engine="compiled")
    (victim,) = asked
    assert victim.engine == "compiled"
    with pytest.raises(ValueError, match="attack_engine"):
        tiny.run(tmp_path / "run", steps=2, eval_every=2)


def test_an_unknown_engine_is_refused_before_anything_is_written(tmp_path) -> None:
    with pytest.raises(
        ValueError, match="engine must be one of 'auto', 'eager', 'compiled', 'graph', got 'jit'"
    ):
        tiny.run(tmp_path / "run", engine="jit")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_before_random_starts_belonged_to_images_is_refused(tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path / "run", progress=lambda status: interrupt(status.step == 5))
    checkpoint = tmp_path / "run/checkpoint.safetensors"
    with safe_open(checkpoint, framework="pt") as file:
        metadata = {name: value for name, value in file.metadata().items() if name != "format"}
    save_file(load_file(checkpoint), checkpoint, metadata)
    with pytest.raises(ValueError, match=r"another version of paretune wrote checkpoint .*delete it"):
        tiny.run(tmp_path / "run")
