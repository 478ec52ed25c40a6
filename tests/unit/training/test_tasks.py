"""Several tasks in one run: each has its own head and its own points, and shares all else."""

import contextlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import paretune as pt
from paretune.attacks import attack_copy
from paretune.runs.progress import Status
from paretune.runs.store import load_points
from paretune.strategies import trainable_parameters
from paretune.training.tasks import Tasks, shared_view, view
from tests import tiny
from tests.together import ATTACK, backbone, both, noise, run

TIMINGS = ["train_seconds", "cpu_seconds", "attack_seconds", "peak_memory_bytes", "path"]
SCHEDULE = pt.EpsilonSchedule.fixed()


def known(model: pt.Backbone, tasks: dict[str, pt.data.ImageData]) -> pt.Backbone:
    """``model`` as training notes it."""
    pt.backbones.backbone.note_task(model, Tasks(tasks).noted())
    return model


def test_each_task_learns_and_has_a_run_of_its_own(tmp_path: Path) -> None:
    model = backbone()
    runs = run(tmp_path, model, steps=120, eval_every=60, objective=pt.training.Natural())
    assert [*runs] == ["digits", "noise"]
    for name, made in runs.items():
        assert made.done
        assert made.path == tmp_path / name
        assert {*made.points.task} == {name}
        assert made.points.clean.iloc[-1] > 0.6
    assert runs["digits"].points.epoch.iloc[-1] == 120 / (len(both()["digits"].train) // 32)
    assert runs["noise"].points.epoch.iloc[-1] == 120 / (len(both()["noise"].train) // 32)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == list(range(1, 121))
    assert {*load_points(tmp_path).task} == {"digits", "noise"}
    assert not [*tmp_path.rglob("*checkpoint*")]
    for name, data in both().items():
        assert model.num_classes == 13
        scores = pt.evaluate(view(model, name), data.report, [pt.PGD(pt.Linf(4 / 255), steps=3)])
        assert scores.clean_accuracy == runs[name].points.clean.iloc[-1]
        assert scores.robust_accuracy(*scores.robust) == runs[name].points.robust.iloc[-1]


def test_the_gradient_of_a_step_is_the_weighted_sum_of_those_of_its_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recomputed from the whole model, whose logits are cut."""
    model, seen = backbone(pt.FullFineTune(bn="frozen"), dropout=0.0), []
    start = {name: value.detach().clone() for name, value in trainable_parameters(model).items()}
    taken: list[dict[str, Tensor]] = []
    on = pt.training.objectives.TrainingBatch.on

    def noted(*arguments: Any, **options: Any) -> Any:
        seen.append(on(*arguments, **options))
        return seen[-1]

    def stop(parameters: Any, *_: Any) -> Any:
        taken.append(
            {n: p.grad.clone() for n, p in trainable_parameters(model).items() if p.grad is not None}
        )
        raise StopIteration

    monkeypatch.setattr(pt.training.objectives.TrainingBatch, "on", noted)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", stop)
    weights = {"digits": 2.0, "noise": 0.25}
    sizes = {"digits": 24, "noise": 12}
    with pytest.raises(StopIteration):
        run(
            tmp_path, model, weights=weights, batch_sizes=sizes, accumulate=3, objective=pt.training.Natural()
        )
    assert [len(batch.labels) for batch in seen] == [24, 12]
    assert seen[0].seed != seen[1].seed

    wanted: dict[str, Tensor] = {}
    for batch, weight, rows in zip(seen, weights.values(), (slice(0, 10), slice(10, 13)), strict=True):
        fresh = backbone(pt.FullFineTune(bn="frozen"), dropout=0.0).train()
        cross_entropy(fresh(batch.images)[:, rows], batch.labels).backward()
        for name, parameter in trainable_parameters(fresh).items():
            assert torch.equal(parameter, start[name])
            wanted[name] = wanted.get(name, torch.zeros_like(parameter)) + weight * parameter.grad
    assert taken[0].keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(taken[0][name], gradient, rtol=1e-4, atol=1e-6)


def test_a_task_of_next_to_no_weight_leaves_the_other_as_it_is_alone(tmp_path: Path) -> None:
    """The first task draws the batches and the attacks of a run of its own; its head begins as the block of it."""
    frozen = pt.FullFineTune(bn="frozen")
    model = backbone(frozen, dropout=0.0)
    alone = view(known(backbone(frozen, dropout=0.0), both()), "digits")
    options = {"optimizer": pt.training.AdamW(5e-3, weight_decay=0.0, clip=None), "epsilon": SCHEDULE}
    run(tmp_path / "both", model, weights={"digits": 1.0, "noise": 1e-30}, **options)
    tiny.run(tmp_path / "alone", model=alone, objective=pt.training.AdversarialTraining(ATTACK), **options)
    images = tiny.data().report[:][0]
    torch.testing.assert_close(view(model, "digits")(images), alone(images), rtol=1e-3, atol=1e-3)
    other = run(tmp_path / "equal", backbone(frozen, dropout=0.0), **options)
    assert not torch.allclose(view(model, "digits")(images), alone(images) + 1)
    assert other["digits"].points.clean.notna().all()


@pytest.mark.parametrize("conv", [False, True])
def test_a_view_answers_with_its_rows_alone(conv: bool) -> None:
    model = known(backbone(), both())
    if conv:
        network = nn.Sequential(
            nn.Conv2d(3, 32, 2, 2), nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 13, 1), nn.Flatten()
        )
        model = known(pt.adapt(pt.Backbone(network.eval(), image_size=8, head="2"), pt.BitFit()), both())
    images = torch.rand(5, 3, 8, 8)
    for name, rows in (("digits", slice(0, 10)), ("noise", slice(10, 13))):
        shown, alone = shared_view(model, name, Tasks(both()).noted()).eval(), view(model, name).eval()
        torch.testing.assert_close(shown(images), model.eval()(images)[:, rows])
        assert torch.equal(shown(images), alone(images))
        assert shown.num_classes == alone.num_classes == rows.stop - rows.start
        assert shown.classes == alone.classes == both()[name].classes
        head = alone.module.get_submodule(alone.head)
        assert type(head) is type(model.module.get_submodule(model.head))
        assert len(head.weight) == alone.num_classes
        # One shares all tensors, the other none.
        theirs = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        assert {id(tensor) for tensor in (*shown.parameters(), *shown.buffers())} == theirs
        assert not {id(tensor) for tensor in (*alone.parameters(), *alone.buffers())} & theirs


def test_an_attack_on_a_view_never_sees_the_other_blocks() -> None:
    """Whatever the other rows are, the attacked images are the same, bit for bit."""
    images, labels = tiny.data().report[:20]
    attacked = []
    for spoilt in (0.0, 1e3, float("nan")):
        model = known(backbone(), both())
        with torch.no_grad():
            model.module[-1].weight[10:] += spoilt
        copy = attack_copy(shared_view(model, "digits", Tasks(both()).noted()))
        attacked.append(ATTACK(copy, images, labels, seed=0))
        with torch.no_grad():
            model.module[-1].weight[:10] *= -1
        copy.refresh()  # sees the weights of the model
        assert not torch.equal(ATTACK(copy, images, labels, seed=0), attacked[-1])
    assert torch.equal(attacked[0], attacked[1])
    assert torch.equal(attacked[0], attacked[2])


@pytest.mark.parametrize(
    "strategy",
    [pt.LoRA(rank=2), pt.BitFit(), pt.FullFineTune(bn="adapt")],
    ids=lambda each: type(each).__name__,
)
def test_the_adapter_of_a_task_loads_on_a_backbone_with_its_classes(strategy: Any, tmp_path: Path) -> None:
    model = backbone(strategy)
    run(tmp_path, model)
    images = torch.rand(7, 3, 8, 8)
    for name, data in both().items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = tiny.network()
            network[-1] = nn.Linear(32, len(data.classes))
        bare = pt.Backbone(network.eval(), image_size=8, sites=["1.norm"])
        kept = {key: value.clone() for key, value in bare.module.state_dict().items()}
        loaded = pt.load_adapter(bare, tmp_path / name / "adapter")
        alone = view(model, name)
        assert torch.equal(loaded(images), alone(images))
        assert loaded.classes == data.classes
        pt.remove_adapter(loaded)
        assert all(torch.equal(value, kept[key]) for key, value in loaded.module.state_dict().items())
        assert pt.remove_adapter(alone).num_classes == len(data.classes)
    network = tiny.network()
    network[-1] = nn.Linear(32, 13)
    network.load_state_dict(pt.remove_adapter(backbone(strategy)).module.state_dict())
    whole = pt.load_adapter(pt.Backbone(network.eval(), image_size=8, sites=["1.norm"]), tmp_path / "adapter")
    assert torch.equal(view(whole, "noise")(images), view(model, "noise")(images))


def same(a: Path, b: Path) -> None:
    """Equal adapters, bits, log, pictures and rows of all tasks; only the clock may differ."""
    for part in ("", "digits", "noise"):
        file = Path(part, "adapter/adapter_model.safetensors")
        first, second = load_file(a / file), load_file(b / file)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    rows = [load_points(path).drop(columns=TIMINGS) for path in (a, b)]
    pd.testing.assert_frame_equal(*rows)
    files = [
        file.relative_to(a) for file in a.rglob("*") if file.name.startswith(("step-", "examples", "log"))
    ]
    assert len(files) > 8
    for file in files:
        assert (a / file).read_bytes() == (b / file).read_bytes()
    assert not [*b.rglob("*.tmp"), *b.rglob("best*"), *b.rglob("checkpoint*")]


class Stop(BaseException):
    """As a kill: nothing after it runs."""


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "ema": 0.9,
            "awp": 0.01,
            "accumulate": 2,
            "keep": "area",
            "patience": 5,
            "batch_sizes": {"digits": 32, "noise": 8},
        },
    ],
    ids=["plain", "all"],
)
def test_a_stopped_run_ends_as_if_it_had_not_been(options: dict[str, Any], tmp_path: Path) -> None:
    options = {"eval_every": 3, "epsilon": SCHEDULE} | options
    run(tmp_path / "whole", **options)
    for last in (2, 3, 5, 8):

        def stop(status: Status, last: int = last) -> None:
            if status.step == last:
                raise Stop

        with contextlib.suppress(Stop):
            run(tmp_path / "stopped", progress=stop, **options)
    run(tmp_path / "stopped", **options)
    same(tmp_path / "whole", tmp_path / "stopped")
    model = backbone()
    run(tmp_path / "stopped", model, **options)  # is done; the model gets its adapter
    saved = load_file(tmp_path / "whole/adapter/adapter_model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in trainable_parameters(model).items())
    again = run(tmp_path / "stopped", resume=False, **options)
    assert again["noise"].done
    same(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.killed", str(tmp_path / "killed"), "tasks"],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 60
    run(tmp_path / "whole")
    same(tmp_path / "whole", tmp_path / "killed")
    assert not [*(tmp_path / "killed").rglob(".*")]


def test_lost_rows_of_a_task_are_seen(tmp_path: Path) -> None:
    def stop(status: Status) -> None:
        if status.step == 9:
            raise Stop

    with contextlib.suppress(Stop):
        run(tmp_path, progress=stop)
    file = tmp_path / "noise/points.jsonl"
    file.write_text(file.read_text().splitlines(keepends=True)[0])
    with pytest.raises(ValueError, match=re.escape(f"{file} has 1 rows up to step 8")):
        run(tmp_path)


def test_a_directory_holds_one_run(tmp_path: Path) -> None:
    run(tmp_path / "tasks")
    with pytest.raises(ValueError, match="holds a run of several tasks"):
        tiny.run(tmp_path / "tasks")
    with pytest.raises(ValueError, match=r"digits\.together\.digits\.weight: 0\.5 there, 3\.0 here"):
        run(tmp_path / "tasks", weights={"digits": 3.0, "noise": 0.5})
    with pytest.raises(ValueError, match="another configuration"):
        run(tmp_path / "tasks", tasks={"other": tiny.data(), "noise": noise()})
    tiny.run(tmp_path / "one")
    with pytest.raises(ValueError, match="holds a run of one task"):
        run(tmp_path / "one")


def test_weights_are_shares_of_the_loss() -> None:
    tasks = both()
    assert Tasks(tasks).shares == (0.5, 0.5)
    sizes = [len(data.train) for data in tasks.values()]
    assert Tasks(tasks, "size").shares == tuple(size / sum(sizes) for size in sizes)
    assert Tasks(tasks, {"noise": 2, "digits": 1.5}).shares == (1.5, 2.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {"digits": tiny.data()}}, "at least two tasks, got digits"),
        ({"tasks": {"digits": tiny.data(), "large": noise(size=16)}}, r"one shape .*large \(3, 16, 16\)"),
        ({"tasks": {"digits": tiny.data(), "one": replace(noise(), classes=("grey",))}}, "'one' has 1 class"),
        ({"tasks": {"a": tiny.data(), "A": noise()}}, "differ by more than case: a, A"),
        ({"tasks": {"a/b": tiny.data(), "noise": noise()}}, "name of a task is that of a directory.*'a/b'"),
        ({"tasks": {"adapter": tiny.data(), "noise": noise()}}, "not 'adapter'"),
        (
            {"tasks": {"a": tiny.data(), "b": pt.load_data("digits", img_size=8, limit=300, seed=1)}},
            "'[ab]' learns .* images that '[ab]' is measured on",
        ),
        (
            {"weights": {"digits": 1.0, "nose": 1.0}},
            "weights must name each task once: digits, noise; got digits, nose",
        ),
        ({"weights": {"digits": 1.0}}, "weights must name each task once"),
        ({"weights": {"digits": 1.0, "noise": 0.0}}, "weight of 'noise' must be finite and above 0, got 0.0"),
        ({"weights": "equal"}, "weights must be .*'equal'"),
        ({"batch_sizes": {"digits": 8}}, "batch_sizes must name each task once"),
        ({"batch_sizes": {"digits": 8, "noise": 500}}, "batch_size=500 is more .* of the task 'noise'"),
        ({"precision": "auto"}, "name one for all"),
        ({"model": None, "classes": 10}, "10 classes, data 'digits . noise' has 13"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = backbone(classes=changes.pop("classes", 13))
    changes.pop("model", None)
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", model, **changes)
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_blocks_is_refused(tmp_path: Path) -> None:
    """Its head may have the tasks in another order."""
    teacher = tmp_path / "teacher"
    run(teacher)
    for place in (teacher, teacher / "digits"):
        objective = pt.training.Natural() + pt.training.Distillation(str(place))
        with pytest.raises(
            ValueError, match=r"teacher.*cannot be loaded on the model of one of several tasks"
        ):
            run(tmp_path / "taught", objective=objective)
    assert not (tmp_path / "taught").exists()


@pytest.mark.some(2)
@pytest.mark.parametrize("name", ["TRADES", "ATTA", "EWC", "FARE"])
def test_other_objectives_go_through_the_views_and_are_resumed(name: str, tmp_path: Path) -> None:
    kind: Any = getattr(pt.training, name)
    objective = kind(ATTACK) if name in ("TRADES", "ATTA") else pt.training.Natural() + 0.1 * kind()
    if name == "FARE":
        objective = pt.training.Natural() + 0.1 * kind(replace(ATTACK, loss="l2"))
    options = {"objective": objective, "epsilon": SCHEDULE}

    def stop(status: Status) -> None:
        if status.step == 6:
            raise Stop

    run(tmp_path / "whole", **options)
    with contextlib.suppress(Stop):
        run(tmp_path / "stopped", progress=stop, **options)
    run(tmp_path / "stopped", **options)
    same(tmp_path / "whole", tmp_path / "stopped")


def test_heads_that_cannot_be_divided_are_refused() -> None:
    class Cosine(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(nn.functional.normalize(x), nn.functional.normalize(self.weight))

    network = tiny.network()
    network[-1] = Cosine(32, 13)
    model = known(pt.adapt(pt.Backbone(network.eval(), image_size=8), pt.BitFit()), both())
    with pytest.raises(ValueError, match=r"plain Linear layer .* got Cosine"):
        shared_view(model, "digits", Tasks(both()).noted())


def test_a_view_of_a_model_that_never_learnt_the_task_is_refused() -> None:
    with pytest.raises(ValueError, match="not trained for several tasks; got 'digits'"):
        view(backbone(), "digits")
    with pytest.raises(ValueError, match="trained for the tasks digits, noise; got 'cifar'"):
        view(known(backbone(), both()), "cifar")
