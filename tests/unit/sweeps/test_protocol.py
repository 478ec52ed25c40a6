"""The inheritance protocol: what is learnt, what is measured, what is kept, and what is refused before anything runs."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import paretune as pt
from paretune.backbones.heads import pretrained_head
from paretune.data.images import ImageData
from paretune.data.related import load_related
from paretune.frontiers.inheritance import Study
from paretune.interchange.averaging import effective_state
from paretune.runs.store import Run, load_runs
from paretune.shifts import Invert, Rotation
from paretune.shifts.imagenet import wordnet_ids
from paretune.sweeps import inheritance
from paretune.sweeps.before import plain
from paretune.sweeps.inheriting import Related
from paretune.sweeps.label_space import versions
from tests import tiny
from tests.unit.sweeps.test_entry import own

FEW: dict[str, Any] = {
    "epochs": 1,
    "pretrain_epochs": 2,
    "batch_size": 16,
    "eval_steps": 1,
    "workers": 1,
    "progress": False,
}
METHODS = "FullFineTune, LinearProbe, FullFineTune + L2SP(), FullFineTune + LPFT(0.5), FullFineTune + WiSE(0.5), Soup()"
TASKS = "Invert(), Rotation(90), Rotation(180)"


def studied(out: Path, **changes: Any) -> Study:
    options = {"tasks": TASKS, "pretrain": tiny.data(), "backbone": own(10), **FEW, **changes}
    return inheritance(options.pop("data", tiny.data()), options.pop("methods", METHODS), out=out, **options)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    out = tmp_path_factory.mktemp("inherit")
    return studied(out, attack_elsewhere=True), out


def run_of(out: Path, name: str) -> Run:
    (path,) = out.glob(f"{name}-seed0-*")
    return load_runs(path)[0]


def start(out: Path) -> pt.Backbone:
    """The model before fine-tuning, from the run that pretrained it."""
    return plain(pt.load_adapter(own(10), run_of(out, "pretraining").path / "adapter"))


def test_ri_is_what_the_runs_measured(done: tuple[Study, Path]) -> None:
    study, out = done
    names = [
        name
        for split in [tiny.data().report]
        for shift in (Invert(), Rotation(90), Rotation(180))
        for name in shift.of(split)
    ]
    assert [*study.clean.tasks] == names
    assert study.robust is not None
    (before,) = load_runs(next(out.glob("before-*")))
    row = before.points.iloc[0]
    for accuracy, answer in (("clean", study.clean), ("robust", study.robust)):
        assert answer.before["pretraining"] == pytest.approx(row[accuracy])
        full = next(each for each in answer.methods if each.method == "FullFineTune")
        for task in names:
            points = run_of(out, f"{task.lower().replace(' ', '-')}-fullfinetune").points.iloc[-1]
            others = [name for name in names if name != task]
            change = [
                points["elsewhere"][name][accuracy] - row["elsewhere"][name][accuracy] for name in others
            ]
            assert full.ri[task].estimate == pytest.approx(np.mean(change))
            assert full.after[task][task] == pytest.approx(points[accuracy])
            assert full.after[task]["pretraining"] == pytest.approx(
                points["elsewhere"]["pretraining"][accuracy]
            )


def test_every_run_begins_with_the_model_before_and_its_head(done: tuple[Study, Path]) -> None:
    _, out = done
    model = start(out)
    assert torch.equal(pretrained_head(model).weight, model.module[-1].weight)  # type: ignore[index]
    (before,) = load_runs(next(out.glob("before-*")))
    scores = pt.evaluate(model, tiny.data().report, [pt.PGD(pt.Linf(2 / 255), steps=1)])
    assert before.points["clean"].iloc[0] == pytest.approx(scores.clean_accuracy)
    wise = run_of(out, "invert-fullfinetune-wise")
    trained = pt.load_adapter(own(10), run_of(out, "invert-fullfinetune").path / "adapter")
    found, ends = effective_state(pt.load_adapter(model, wise.path / "adapter")), (start(out), trained)
    for name, value in found.items():
        if value.is_floating_point():
            first, second = (effective_state(end)[name].double() for end in ends)
            torch.testing.assert_close(value, ((first + second) / 2).float())


def test_what_is_learnt_of_one_task_is_reported_of_none(done: tuple[Study, Path]) -> None:
    _, out = done
    tasks = versions(tiny.data(), (Invert(), Rotation(90)))
    assert {tuple(each.train.ids.tolist()) for each in tasks.values()} == {
        tuple(tiny.data().train.ids.tolist())
    }
    run = run_of(out, "invert-fullfinetune")
    assert run.points["examples"].iloc[0] == len(tiny.data().report)
    assert run.config["data"] != tiny.data().fingerprint


def test_called_again_it_repeats_nothing_and_says_the_same(done: tuple[Study, Path]) -> None:
    study, out = done
    times = {path: path.stat().st_mtime_ns for path in out.glob("*/DONE")}
    assert studied(out, attack_elsewhere=True) == study
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/DONE")} == times
    assert len(times) == 2 + 3 * 6


def test_stopped_it_goes_on_and_ends_with_the_same_answer(done: tuple[Study, Path], tmp_path: Path) -> None:
    study, out = done
    shutil.copytree(out, tmp_path / "copy")
    for path in (*(tmp_path / "copy").glob("rotation*"), *(tmp_path / "copy").glob("before-*")):
        shutil.rmtree(path)
    assert studied(tmp_path / "copy", attack_elsewhere=True) == study


def test_a_method_that_is_added_needs_its_runs_alone(done: tuple[Study, Path], tmp_path: Path) -> None:
    study, out = done
    shutil.copytree(out, tmp_path / "copy")
    wider = studied(
        tmp_path / "copy", attack_elsewhere=True, methods="FullFineTune, BitFit, Soup('FullFineTune')"
    )
    before, after = ({each.method: each.mri for each in answer.clean.methods} for answer in (study, wider))
    assert {*after} == {"FullFineTune", "BitFit", "Soup of 2"}
    assert after["FullFineTune"] == before["FullFineTune"]
    assert len([*(tmp_path / "copy").glob("*/DONE")]) == 2 + 3 * 6 + 3 * 2


def test_as_published_all_of_a_task_is_learnt_and_measured(tmp_path: Path) -> None:
    study = studied(tmp_path, methods="LinearProbe", held_out=False)
    run = run_of(tmp_path, "invert-linearprobe")
    total = sum(map(len, (tiny.data().train, tiny.data().select, tiny.data().report)))
    assert run.points["examples"].iloc[0] == total
    assert study.clean.examples == {
        **dict.fromkeys(study.clean.tasks, total),
        "pretraining": len(tiny.data().report),
    }
    assert int(run.points["step"].iloc[0]) == total // 16
    assert "all of it is learnt" in run.config["task"]
    assert "was learnt" in study.protocol
    assert any("learnt in another version" in note for note in study.notes)


def test_a_model_with_an_adapter_begins_as_what_it_is(tmp_path: Path) -> None:
    model = pt.adapt(own(10), pt.LoRA(rank=2), seed=0)
    run = pt.train(
        model,
        tiny.data(),
        pt.training.Natural(),
        out=tmp_path / "run",
        steps=4,
        attacks=[pt.PGD(pt.Linf(0.01), steps=1)],
        progress=False,
    )
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    study = studied(
        tmp_path / "out", backbone=model, pretrain=None, pretraining=tiny.data(), methods="LinearProbe"
    )
    assert study.clean.before["pretraining"] == pytest.approx(run.points["clean"].iloc[-1])
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    without = studied(tmp_path / "without", backbone=model, pretrain=None, methods="LinearProbe")
    assert without.clean.pretraining is None
    assert without.clean.best.drop is None
    assert without.clean.best.mri == study.clean.best.mri


def test_versions_of_one_picture_are_one_unit() -> None:
    """So that intervals are those of as many pictures as there are, and not of twice as many."""
    data = tiny.data()
    tasks = versions(data, (Invert(), Rotation(90)))
    for held_out, ids in ((True, data.report.ids), (False, None)):
        related = Related(tasks, own(10), data.report, held_out, "tiny")
        one, other, pretraining = (np.asarray(labels) for labels in related.units.values())
        np.testing.assert_array_equal(one, other)
        assert len({*one.tolist()}) == len(one)
        assert {*pretraining.tolist()} <= {*one.tolist()}
        if ids is not None:
            np.testing.assert_array_equal(one, ids)


def of_domains(root: Path, **without: str) -> Path:
    rng = np.random.default_rng(0)
    for tone, domain in enumerate(("art", "photo", "sketch")):
        for label, name in enumerate(("cat", "dog", "owl")):
            if without.get(domain) == name:
                continue
            (root / domain / name).mkdir(parents=True)
            for number in range(10 + tone):  # what a folder holds is told by names and sizes
                pixels = rng.integers(0, 80, (8, 8, 3), dtype=np.uint8) + np.uint8(60 * label)
                pixels[..., tone] //= 2
                Image.fromarray(pixels).save(root / domain / name / f"{number}.png")
    return root


def test_domains_are_tasks(tmp_path: Path) -> None:
    place = of_domains(tmp_path / "pets")
    learnt = pt.load_data(place / "art")
    options: dict[str, Any] = {
        "data": str(place),
        "tasks": None,
        "pretrain": learnt,
        "backbone": own(3),
        "batch_size": 8,
    }
    study = studied(tmp_path / "out", methods="LinearProbe", domains="photo,sketch", **options)
    assert study.clean.tasks == ("photo", "sketch")
    with pytest.raises(ValueError, match="'art' is what the model is pretrained on"):
        studied(tmp_path / "all", methods="LinearProbe", **options)
    both = pt.load_data(place, train_domains=["sketch", "art"])
    with pytest.raises(ValueError, match="'art' is what the model is pretrained on"):
        studied(tmp_path / "all", methods="LinearProbe", **options | {"pretrain": both})
    with pytest.raises(ValueError, match="pretrain_domain='at' is none of art, photo, sketch"):
        studied(tmp_path / "all", **options | {"pretrain": None, "pretrain_domain": "at"})
    assert not (tmp_path / "all").exists()
    options |= {"pretrain": None, "pretrain_domain": "art", "among": True}
    study = studied(tmp_path / "one", methods="LinearProbe", **options)
    assert study.clean.tasks == ("photo", "sketch")
    related = load_related(place)
    assert study.clean.examples["pretraining"] == len(related["art"].report)
    run = run_of(tmp_path / "one", "pretraining")
    assert run.points["report_id"].iloc[0] == related["art"].report.fingerprint


@pytest.mark.slow
def test_imagenet_folders_are_measured_among_their_classes(tmp_path: Path) -> None:
    """A tree of WordNet ids, of which each task has some, and a model of 1,000 classes."""
    names, rng = wordnet_ids(), np.random.default_rng(0)
    chosen = {"imagenet-a": (3, 10, 400), "imagenet-r": (3, 10, 700, 5)}
    for domain, classes in chosen.items():
        for label in classes:
            (tmp_path / "rib" / domain / names[label]).mkdir(parents=True)
            for number in range(6):
                pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "rib" / domain / names[label] / f"{number}.png")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = pt.Backbone(timm.create_model("test_resnet", num_classes=1000).eval(), image_size=32)
    options: dict[str, Any] = {
        "data": str(tmp_path / "rib"),
        "tasks": None,
        "pretrain": None,
        "backbone": model,
        "batch_size": 4,
    }
    with pytest.raises(
        ValueError, match=rf"'imagenet-a' has no image of the class '{names[0]}' \(nor of 996 others\)"
    ):
        studied(tmp_path / "none", methods="LinearProbe", **options)
    study = studied(tmp_path / "out", methods="LinearProbe, LinearProbe + WiSE(0.5)", among=True, **options)
    assert any(
        "imagenet-r the model answers with one of the 4 classes of the task, of 1,000" in note
        for note in study.notes
    )
    assert any("taken for the classes of ImageNet-1k" in note for note in study.notes)
    # By chance one of three and one of four are right, and not one of a thousand.
    assert study.clean.before["imagenet-a"] + study.clean.before["imagenet-r"] > 0
    kept = run_of(tmp_path / "out", "imagenet-r-linearprobe").examples()
    assert kept is not None
    assert kept.classes == names
    assert {names[label] for label in kept.labels} == {names[label] for label in chosen["imagenet-r"]}
    assert kept.pictures is not None
    assert {*kept.pictures.predicted.flatten().tolist()} <= {*chosen["imagenet-r"]}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tasks": "Invert()"}, "two related tasks or more; got"),
        ({"tasks": None}, "data is one task"),
        ({"backbone": own(4), "pretrain": None}, "the model has 4 logits, the tasks 10 classes"),
        ({"methods": "LoRA + Linf(1)"}, "no part of a method"),
        ({"batch_size": 5000}, "batch_size=5000"),
        ({"pretraining": tiny.data()}, "give one of them"),
        ({"pretrain_domain": "photo"}, "tasks are changes of it: give pretrain"),
        ({"shifts": "Invert()"}, "give tasks="),
        ({"train_domains": "photo"}, "with domains, not with train_domains"),
        ({"domains": "photo"}, "tasks or domains, not both"),
        ({"seeds": [1, 1]}, "each one once"),
        ({"pretrain_epochs": 0}, "pretrain_epochs"),
        ({"level": 95}, "did you mean 0.95"),
        (
            {"pretrain": pt.load_data("digits", img_size=8, limit=300, seed=1)},
            "are split otherwise",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_runs(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        studied(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_an_option_that_there_is_not_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="did you mean held_out"):
        studied(tmp_path, heldout=True)


def test_tasks_of_other_classes_are_refused(tmp_path: Path) -> None:
    tasks = versions(tiny.data(), (Invert(), Rotation(90)))
    first, second = tasks
    images = torch.rand(60, 3, 8, 8)
    other = ImageData.from_tensors(images, torch.arange(60) % 10, [f"class {number}" for number in range(10)])
    with pytest.raises(ValueError, match="has the class 'class 0', which is none of the 10"):
        studied(tmp_path, data={first: tasks[first], "other": other}, tasks=None)
    with pytest.raises(ValueError, match="have different classes: '0' is a class of one alone"):
        studied(tmp_path, data={first: tasks[first], "other": other}, tasks=None, pretrain=None)
    lacking = replace(
        tasks[second],
        **{role: getattr(tasks[second], role).labelled(tiny.data().classes) for role in ("train", "select")},
    )
    assert lacking.classes == tiny.data().classes  # has all of them
    few = ImageData.from_tensors(images, torch.arange(60) % 9, [str(number) for number in range(9)])
    with pytest.raises(ValueError, match="'few' has no image of the class '9'"):
        studied(tmp_path, data={first: tasks[first], "few": few}, tasks=None)


def test_a_task_is_not_called_as_that_of_pretraining(tmp_path: Path) -> None:
    tasks = [*versions(tiny.data(), (Invert(), Rotation(90))).values()]
    with pytest.raises(ValueError, match="give the task another name"):
        studied(tmp_path, data={"pretraining": tasks[0], "other": tasks[1]}, tasks=None, pretrain=None)


def test_a_backbone_without_a_head_says_what_to_do(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "w.pth")
    options = {
        "pretrain": None,
        "backbone": "timm:test_resnet",
        "weights": str(tmp_path / "w.pth"),
        "img_size": 32,
    }
    with pytest.raises(
        ValueError, match=r"came without a head.*train it on a task with the same classes first"
    ):
        studied(tmp_path / "out", data="digits", **options)
