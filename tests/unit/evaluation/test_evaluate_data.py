"""What an adapter is measured on: the data it was trained on, other images of its classes, and nothing else."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import paretune as pt
from paretune.backbones.backbone import task_of
from paretune.commands.cli import main
from paretune.interchange import save_peft

CLASSES = ("ant", "bee", "cat", "dog")
OTHERS = ("ash", "elm", "fir", "oak")


def folder(path: Path, classes: tuple[str, ...] = CLASSES, images: int = 12, first: int = 0) -> Path:
    """Images of 32x32, a grey and a noise for each class."""
    for label, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for number in range(first, first + images):
            noise = np.random.default_rng([label, number]).integers(0, 60, (32, 32, 3))
            Image.fromarray((noise + 60 * label).astype(np.uint8)).save(path / name / f"{number}.png")
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(timm.create_model("test_resnet").state_dict(), path)
    return str(path)


@pytest.fixture
def evaluated(weights: str, capsys: pytest.CaptureFixture[str]) -> Any:
    """``paretune evaluate`` with these arguments: exit code, last three cells of its row, what was said."""

    def run(adapter: Path, *arguments: str) -> tuple[int, list[str], str]:
        capsys.readouterr()
        options = ["--weights", weights, "--epsilons", "1/255", "--steps", "2"]
        code = main(["evaluate", str(adapter), *options, *arguments])
        out, err = capsys.readouterr()
        rows = [line.split() for line in out.splitlines() if "PGD" in line]
        said = [line for line in err.splitlines() if line.startswith("paretune:")]  # and not the bar
        return code, rows[0][-3:] if rows else [], "\n".join(said)

    return run


def trained(out: Path, weights: str, data: pt.data.ImageData) -> tuple[pt.Backbone, list[str]]:
    """A model trained for a few steps, and what ``paretune evaluate`` prints of its last point."""
    model = pt.load_backbone("timm:test_resnet", num_classes=len(data.classes), img_size=32, weights=weights)
    pt.adapt(model, pt.LoRA(rank=2))
    run = pt.train(
        model,
        data,
        pt.training.Natural(),
        out=out,
        steps=6,
        batch_size=8,
        attacks=[pt.PGD(pt.Linf(1 / 255), steps=2)],
        progress=False,
    )
    last = run.points.iloc[-1]
    return model, [f"{last['clean']:.4g}", f"{last['robust']:.4g}", str(last["examples"])]


# ---- the command ----------------------------------------------------------------------------------------------------


def test_an_adapter_is_measured_on_what_it_was_trained_on(tmp_path, weights, evaluated, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "zoo", images=30)
    data = pt.load_data("zoo", img_size=32, seed=3, limit=60, splits=(0.5, 0.2, 0.3))
    _, last = trained(tmp_path / "run", weights, data)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for adapter in (tmp_path / "run", tmp_path / "run" / "adapter"):
        assert evaluated(adapter) == (0, last, "")
    # The same said in full is the same.
    options = ["--data", "../zoo", "--limit", "60", "--split-seed", "3"]
    assert evaluated(tmp_path / "run", *options) == (0, last, "")


def test_an_adapter_is_measured_at_the_size_of_the_images_it_was_trained_on(
    tmp_path, weights, evaluated
) -> None:
    model = pt.load_backbone("timm:test_resnet", num_classes=4, weights=weights)
    data = pt.load_data(folder(tmp_path / "zoo"), img_size=24)
    assert model.image_size != 24
    attacks = [pt.PGD(pt.Linf(1 / 255), steps=2)]
    arguments: dict[str, Any] = {"out": tmp_path / "run", "steps": 2, "batch_size": 8, "attacks": attacks}
    pt.train(pt.adapt(model, pt.LoRA(rank=2)), data, pt.training.Natural(), progress=False, **arguments)
    code, row, err = evaluated(tmp_path / "run")  # and no note, so that the fingerprint is that of size 24
    assert (code, row[-1], err) == (0, "12", "")


def test_data_that_is_not_where_it_was_is_named_with_the_way_out(tmp_path, weights, evaluated) -> None:
    trained(tmp_path / "run", weights, pt.load_data(folder(tmp_path / "zoo"), img_size=32))
    file = tmp_path / "run" / "adapter" / "paretune.json"
    config = json.loads(file.read_text())
    config["notes"]["data"]["loaded_with"] |= {"name_or_path": "cifar10", "root": str(tmp_path / "gone")}
    file.write_text(json.dumps(config))
    code, _, err = evaluated(tmp_path / "run")
    assert code == 2
    assert "was trained on is not here: no complete CIFAR10 under" in err
    assert "pass --data or --data-root with where it is now" in err


@pytest.mark.thorough
def test_a_limit_of_training_holds_in_a_process_of_its_own(tmp_path, weights) -> None:
    train = (
        "train --backbone timm:test_resnet --img-size 32 --limit 150 --epochs 1 --points 1 --strategy bitfit"
    )
    train += " --train-steps 0 --eval-steps 2 --epsilon 1/255 --batch-size 16 --split-seed 5 --out run"
    evaluate = "evaluate run --epsilons 1/255 --steps 2"
    run = "from paretune.commands.cli import main; raise SystemExit(main())"
    printed = []
    for command in (train, evaluate):
        done = subprocess.run(
            [sys.executable, "-c", run, *command.split(), "--weights", weights],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        printed.append(done.stdout)
        assert "note:" not in done.stderr
    last = pt.runs.load_runs(tmp_path / "run")[0].points.iloc[-1]
    row = next(line.split() for line in printed[1].splitlines() if "PGD" in line)
    assert row[-3:] == [f"{last['clean']:.4g}", f"{last['robust']:.4g}", "40"]


def test_a_larger_limit_measures_more_images_none_of_them_trained_on_and_says_so(
    tmp_path, weights, evaluated
) -> None:
    path = folder(tmp_path / "zoo", images=30)
    few = pt.load_data(path, img_size=32, limit=48)
    trained(tmp_path / "run", weights, few)
    everything = pt.load_data(path, img_size=32)
    assert not set(few.train.ids.tolist()) & set(everything.report.ids.tolist())
    for limit, size in (("all", len(everything.report)), ("90", 24)):
        code, row, err = evaluated(tmp_path / "run", "--limit", limit)
        assert (code, row[-1]) == (0, str(size))
        note = f"{size} images are measured, not the {len(few.report)} that the run of the adapter reports; it was trained"
        assert f"{note} on none of them" in err


def test_images_that_an_adapter_was_trained_on_do_not_measure_it(tmp_path, weights, evaluated) -> None:
    path = folder(tmp_path / "zoo")
    data = pt.load_data(path, img_size=32, seed=2)
    trained(tmp_path / "run", weights, data)
    leaked = set(data.train.ids.tolist()) & set(pt.load_data(path, img_size=32, seed=0).report.ids.tolist())
    assert leaked
    # Also where the folder is a copy.
    shutil.copytree(path, tmp_path / "copy")
    for arguments in (["--split-seed", "0"], ["--split-seed", "0", "--data", str(tmp_path / "copy")]):
        code, row, err = evaluated(tmp_path / "run", *arguments)
        assert (code, row) == (2, [])
        assert f"was trained on {len(leaked)} of the 12 images that --split-seed 0 would measure" in err
        assert "or give 2, with which it was trained" in err


def test_another_seed_measures_the_same_official_test_images(tmp_path, weights, evaluated) -> None:
    folder(tmp_path / "zoo" / "train", images=12)
    folder(tmp_path / "zoo" / "test", images=4, first=100)
    _, last = trained(tmp_path / "run", weights, pt.load_data(tmp_path / "zoo", img_size=32))
    assert evaluated(tmp_path / "run", "--split-seed", "7") == (0, last, "")


def test_other_classes_are_refused_with_both_lists(tmp_path, weights, evaluated) -> None:
    trained(tmp_path / "run", weights, pt.load_data(folder(tmp_path / "zoo"), img_size=32))
    code, row, err = evaluated(tmp_path / "run", "--data", "digits")
    assert (code, row) == (2, [])
    assert "the model has 4 logits, the data 10 classes (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)" in err
    code, row, err = evaluated(tmp_path / "run", "--data", str(folder(tmp_path / "trees", OTHERS)))
    assert (code, row) == (2, [])
    assert "label 0 is 'ant' for the model and 'ash' in the data" in err
    assert "ant, bee, cat, dog" in err
    assert "ash, elm, fir, oak" in err


def test_a_folder_that_moved_is_asked_for_and_measures_the_same(tmp_path, weights, evaluated) -> None:
    path = folder(tmp_path / "zoo")
    _, last = trained(tmp_path / "run", weights, pt.load_data(path, img_size=32, seed=1, limit=40))
    path.rename(tmp_path / "moved")
    code, row, err = evaluated(tmp_path / "run")
    assert (code, row) == (2, [])
    assert (
        f"was trained on is not here: name_or_path='{path}' is not a folder; pass --data or --data-root"
        in err
    )
    assert evaluated(tmp_path / "run", "--data", str(tmp_path / "moved")) == (0, last, "")


def test_other_images_of_the_same_classes_are_measured_with_a_note(tmp_path, weights, evaluated) -> None:
    path = folder(tmp_path / "zoo")
    trained(tmp_path / "run", weights, pt.load_data(path, img_size=32))
    other = folder(tmp_path / "other", images=16, first=50)
    code, row, err = evaluated(tmp_path / "run", "--data", str(other))
    assert (code, row[-1]) == (0, "16")
    assert (
        f"note: {other} differs from the data that the adapter was trained on; some of the 16 images" in err
    )


def test_a_folder_that_has_changed_is_measured_only_where_it_is_named(tmp_path, weights, evaluated) -> None:
    path = folder(tmp_path / "zoo")
    trained(tmp_path / "run", weights, pt.load_data(path, img_size=32))
    Image.new("RGB", (32, 32)).save(path / "ant" / "new.png")  # its splits are others now
    code, row, err = evaluated(tmp_path / "run")
    assert (code, row) == (2, [])
    assert f"{path} differs from the data that the adapter was trained on" in err
    assert f"Restore it, or pass --data {path} to measure it all the same" in err
    code, row, err = evaluated(tmp_path / "run", "--data", str(path))
    assert (code, len(row)) == (0, 3)
    assert f"note: {path} differs from the data that the adapter was trained on" in err


def test_an_adapter_trained_on_tensors_must_be_told_what_to_load(tmp_path, weights, evaluated) -> None:
    path = folder(tmp_path / "zoo")
    loaded = pt.load_data(path, img_size=32)
    images, labels = loaded.train[:]
    tensors = pt.data.ImageData.from_tensors(images, labels, CLASSES, "mine")
    trained(tmp_path / "run", weights, tensors)
    code, row, err = evaluated(tmp_path / "run")
    assert (code, row) == (2, [])
    assert (
        "does not say where the images, called 'mine', are that it was trained on; pass --data with digits"
        in err
    )
    code, row, err = evaluated(tmp_path / "run", "--data", str(path))
    assert (code, row[-1]) == (0, "12")
    assert "differs from the data that the adapter was trained on" in err


@pytest.mark.parametrize(
    "notes", [None, {"data": "zoo"}, {"data": {"loaded_with": 5}}, {"data": {"loaded_with": {}}}]
)
def test_an_adapter_whose_notes_say_nothing_of_data_must_be_told(
    tmp_path: Path, weights: str, evaluated: Any, notes: Any
) -> None:
    path = folder(tmp_path / "zoo")
    model = pt.load_backbone("timm:test_resnet", num_classes=4, img_size=32, weights=weights)
    pt.save_adapter(pt.adapt(model, pt.LoRA(rank=2)), tmp_path / "adapter", notes=notes)
    code, row, err = evaluated(tmp_path / "adapter")
    assert (code, row) == (2, [])
    assert "pass --data" in err
    code, row, err = evaluated(tmp_path / "adapter", "--data", str(path))
    assert (code, row[-1]) == (0, "12")
    assert "the adapter does not say which images it was trained on; some of the 12 images" in err


def test_a_description_from_elsewhere_gives_no_further_arguments(
    tmp_path, weights, evaluated, monkeypatch
) -> None:
    path = folder(tmp_path / "zoo")
    _, last = trained(tmp_path / "run", weights, pt.load_data(path, img_size=32))
    file = tmp_path / "run" / "adapter" / "paretune.json"
    config = json.loads(file.read_text())
    config["notes"]["data"]["loaded_with"] |= {"download": True, "nonsense": 1}
    file.write_text(json.dumps(config))
    assert evaluated(tmp_path / "run") == (0, last, "")


def test_an_adapter_saved_by_hand_knows_its_data_too(tmp_path, weights, evaluated) -> None:
    path = folder(tmp_path / "zoo")
    model, last = trained(tmp_path / "run", weights, pt.load_data(path, img_size=32, seed=1))
    again = pt.load_backbone("timm:test_resnet", num_classes=4, img_size=32, weights=weights)
    pt.load_adapter(again, pt.save_adapter(model, tmp_path / "one", notes={"objective": "mine"}))
    pt.save_adapter(again, tmp_path / "two")
    for name in ("one", "two"):
        assert evaluated(tmp_path / name) == (0, last, "")
    assert "- data: `zoo`" in (tmp_path / "two" / "README.md").read_text()


def test_a_folder_of_this_machine_is_pointed_out_before_an_upload(tmp_path, weights, caplog) -> None:
    path = folder(tmp_path / "zoo")
    trained(tmp_path / "run", weights, pt.load_data(path, img_size=32))
    pt.interchange.push_to_hub(tmp_path / "run" / "adapter", "user/repo", dry_run=True)
    assert f"paretune.json names '{path}', a path of this machine, as the data" in caplog.text


# ---- the same in Python ---------------------------------------------------------------------------------------------


def tensors(classes: tuple[str, ...] | None, name: str = "tensors") -> pt.data.ImageData:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(48) % 4
    images = (0.2 * labels.view(-1, 1, 1, 1) + 0.2 * torch.rand(48, 3, 4, 4, generator=draw)).float()
    return pt.data.ImageData.from_tensors(images, labels, classes, name)


def small(classes: int = 4) -> pt.Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, classes))
    return pt.Backbone(network, image_size=4)


def fit(model: pt.Backbone, data: pt.data.ImageData, out: Path) -> pt.Backbone:
    attacks = [pt.PGD(pt.Linf(0.01), steps=1)]
    pt.train(
        model, data, pt.training.Natural(), out=out, steps=2, batch_size=8, attacks=attacks, progress=False
    )
    return model


OTHER = r"label 0 is 'ant' for the model and 'ash' in the data. The model's are ant, bee, cat, dog; the data's are ash, elm"


def test_a_model_is_not_measured_on_data_of_other_classes_than_it_was_trained_for(tmp_path: Path) -> None:
    ours, theirs = tensors(CLASSES), tensors(OTHERS)
    model = small()
    assert model.classes is None
    assert pt.evaluate(model, theirs.report).clean.shape == (len(theirs.report),)  # nobody named its logits
    fit(pt.adapt(model, pt.LoRA(rank=1)), ours, tmp_path / "run")
    assert model.classes == CLASSES
    expected = pt.evaluate(model, ours.report).clean
    again = pt.load_adapter(small(), tmp_path / "run" / "adapter")
    plain = pt.load_adapter(small().module, tmp_path / "run" / "adapter")
    merged = pt.merge_adapter(copy.deepcopy(model))
    for one in (
        model,
        again,
        copy.deepcopy(model),
        merged,
        nn.DataParallel(model),
        nn.Sequential(again),
        plain,
    ):
        assert task_of(one).classes == CLASSES
        state = tmp_path / "state"
        with pytest.raises(ValueError, match=OTHER):
            pt.evaluate(one, theirs.report, state=state)
        assert not state.exists()
        if one is not plain:  # whose images are not normalised
            assert np.array_equal(pt.evaluate(one, ours.report).clean, expected)
        assert pt.evaluate(one, tensors(None).report).clean.shape == expected.shape  # unnamed
    with pytest.raises(ValueError, match="label 0 is 'ant' for the model and 'bee' in the data"):
        pt.evaluate(model, tensors(("bee", "ant", "cat", "dog")).report)
    # A finished run that is loaded names them too.
    assert fit(pt.adapt(small(), pt.LoRA(rank=1)), ours, tmp_path / "run").classes == CLASSES
    with pytest.raises(ValueError, match="label 0 is 'ant' for the model and 0 in the data"):
        pt.evaluate(model, tensors((0, 1, 2, 3)).report)  # type: ignore[arg-type]
    model.classes = None
    assert np.array_equal(pt.evaluate(model, theirs.report).clean, expected)
    with pytest.raises(ValueError, match="classes must name 4 classes, one a logit; got 3"):
        model.classes = CLASSES[:3]


def test_an_adapter_that_is_taken_off_takes_its_classes_along(tmp_path: Path) -> None:
    model = fit(pt.adapt(small(), pt.LoRA(rank=1)), tensors(CLASSES), tmp_path / "one")
    assert pt.remove_adapter(copy.deepcopy(model)).classes is None  # type: ignore[attr-defined]
    pt.merge_adapter(model)
    model.classes = OTHERS
    pt.adapt(model, pt.LoRA(rank=1))
    pt.load_adapter(pt.remove_adapter(model), tmp_path / "one" / "adapter", check_base=False)
    assert model.classes == CLASSES
    assert pt.remove_adapter(model).classes == OTHERS  # type: ignore[attr-defined]


def test_a_head_from_elsewhere_has_no_names(tmp_path: Path) -> None:
    save_peft(fit(pt.adapt(small(), pt.LoRA(rank=1)), tensors(CLASSES), tmp_path / "run"), tmp_path / "peft")
    model = small()
    model.classes = OTHERS
    pt.load_adapter(model, tmp_path / "peft")
    assert model.classes is None


def test_more_or_fewer_logits_than_named_classes_measure_nothing() -> None:
    data = tensors(CLASSES)
    for classes in (5, 1000):
        with pytest.raises(
            ValueError, match=rf"has {classes} logits, the data 4 classes \(ant, bee, cat, dog\)"
        ):
            pt.evaluate(small(classes), data.report)
        # Labels that are mere numbers may leave classes out.
        assert len(pt.evaluate(small(classes), tensors(None).report).clean) == len(data.report)
    with pytest.raises(ValueError, match="below the model's 3 classes, got 3"):
        pt.evaluate(small(3), data.report)


def test_a_model_is_not_trained_further_for_other_classes(tmp_path: Path) -> None:
    model = fit(pt.adapt(small(), pt.LoRA(rank=1)), tensors(CLASSES), tmp_path / "one")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=OTHER):
        fit(model, tensors(OTHERS), tmp_path / "two")
    assert not (tmp_path / "two").exists()
    assert model.classes == CLASSES
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    fit(pt.adapt(pt.merge_adapter(model), pt.LoRA(rank=1)), tensors(CLASSES), tmp_path / "three")  # type: ignore[arg-type]


def test_adapters_are_saved_with_the_classes_that_they_were_trained_for(tmp_path: Path) -> None:
    model = fit(pt.adapt(small(), pt.LoRA(rank=1)), tensors(CLASSES), tmp_path / "run")

    def saved(**options: Any) -> Any:
        directory = pt.save_adapter(model, tmp_path / "adapter", **options)
        return json.loads((directory / "paretune.json").read_text())["classes"]

    assert saved() == [*CLASSES]
    assert saved(classes=OTHERS) == [*OTHERS]
    with pytest.raises(ValueError, match="classes must name 4 classes, one a logit; got"):
        saved(classes=CLASSES[:3])
    fit(model, tensors(None), tmp_path / "unnamed")
    assert model.classes is None
    assert saved() is None


def test_adapters_that_take_turns_have_each_its_classes(tmp_path: Path) -> None:
    for name, classes in (("zoo", CLASSES), ("wood", OTHERS)):
        fit(pt.adapt(small(), pt.LoRA(rank=1)), tensors(classes), tmp_path / name)
    model = pt.load_adapter(small(), tmp_path / "zoo" / "adapter")
    adapters = pt.interchange.AdapterSet(model)
    adapters.add("zoo")
    adapters.add("wood", tmp_path / "wood" / "adapter")
    adapters.add("more", tmp_path / "zoo" / "adapter")
    data = {CLASSES: tensors(CLASSES).report, OTHERS: tensors(OTHERS).report}
    for name, classes in (("wood", OTHERS), ("zoo", CLASSES), ("more", CLASSES), ("wood", OTHERS)):
        adapters.activate(name)
        assert task_of(model).classes == classes
        pt.evaluate(model, data[classes])
        with pytest.raises(ValueError, match="other classes"):
            pt.evaluate(model, data[OTHERS if classes == CLASSES else CLASSES])
    adapters.activate({"zoo": 0.5, "more": 0.5})
    assert task_of(model).classes == CLASSES
    adapters.activate({"zoo": 0.5, "wood": 0.5})
    assert task_of(model).classes is None
    adapters.activate(None)
    assert task_of(model).classes is None
    for name, classes in (("wood", OTHERS), ("more", CLASSES)):
        path = adapters.save(name, tmp_path / "saved")
        assert json.loads((path / "paretune.json").read_text())["classes"] == [*classes]


def test_data_says_how_it_was_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder(tmp_path / "zoo").parent)
    data = pt.load_data("zoo", img_size=16, seed=4, limit=np.int64(40), splits=(0.5, 0.25, 0.25))
    monkeypatch.chdir("/")
    made = json.loads(json.dumps(data.loaded_with))
    assert Path(made["name_or_path"]) == (tmp_path / "zoo").resolve()
    assert pt.load_data(**made).fingerprint == data.fingerprint
    assert tensors(CLASSES).loaded_with is None
    assert hash(data) == hash(data)
    assert [split.classes for split in (data.train, data.select, data.report)] == [CLASSES] * 3
    assert tensors(None).report.classes is None
