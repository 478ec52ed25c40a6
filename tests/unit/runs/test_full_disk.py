"""Whatever the disk refuses or has damaged is one line that names the file; later the same call goes on."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

import paretune as pt
from paretune.attacks import AutoAttack, Linf
from paretune.commands.cli import main
from paretune.interchange.directory import write_directory
from paretune.sweeps.executors import local
from tests import tiny
from tests.synthetic import write_runs
from tests.unit.commands.test_cli import SMALL, weights  # noqa: F401  # a fixture
from tests.unit.evaluation.test_evaluation_state import PGD, Killed, killed_after, same, split

ATTACK = AutoAttack(Linf(0.03), steps=6, queries=12, targets=2)


@pytest.fixture
def limited() -> Iterator[Callable[[int], None]]:
    """Sets how many bytes a file may have, as a full disk would; until the test is over."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.some(2)
@pytest.mark.parametrize("size", [0, 60, 300, 1000])
def test_an_evaluation_that_a_full_disk_stopped_goes_on(
    tmp_path: Path, limited: Callable[[int], None], size: int
) -> None:
    model, data = split()
    expected = pt.evaluate(model, data, [PGD, ATTACK], batch_size=3)
    limited(size)
    with pytest.raises(OSError, match=rf"\[Errno {errno.EFBIG}\] .*{tmp_path / 'state'}"):
        pt.evaluate(model, data, [PGD, ATTACK], batch_size=3, state=tmp_path / "state")
    limited(resource.RLIM_INFINITY)
    assert same(pt.evaluate(model, data, [PGD, ATTACK], batch_size=3, state=tmp_path / "state"), expected)
    assert not list((tmp_path / "state").rglob(".*"))


@pytest.mark.parametrize(
    "damage", [b"", b"\x00" * 40, "half", "clean bits only", "counts", "robust but not clean", "another name"]
)
def test_a_damaged_part_of_an_evaluation_is_named_and_computed_again_when_it_is_removed(
    tmp_path: Path, damage: str | bytes
) -> None:
    model, data = split()
    expected = pt.evaluate(model, data, [PGD], batch_size=16, state=tmp_path)
    file = tmp_path / "000001.safetensors"
    if isinstance(damage, bytes):
        file.write_bytes(damage)
    elif damage == "half":
        file.write_bytes(file.read_bytes()[:-10])
    else:
        bits = {
            "clean bits only": np.ones((1, 16), bool),
            "counts": np.ones((2, 16)),
            "robust but not clean": np.array([[False] * 16, [True] * 16]),
            "another name": np.ones((2, 16), bool),
        }[damage]
        save_file({"bits" if damage != "another name" else "other": bits}, file)
    with pytest.raises(ValueError, match=rf"{file} is damaged .*remove it, and its part is computed again"):
        pt.evaluate(model, data, [PGD], batch_size=16, state=tmp_path)
    file.unlink()
    assert same(pt.evaluate(model, data, [PGD], batch_size=16, state=tmp_path), expected)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"{}", b'{"probe": "x"}', b'{"probe": [[1], [1, 2]]}', b"\xff"]
)
def test_a_damaged_plan_is_named(tmp_path: Path, content: bytes) -> None:
    model, data = split()
    pt.evaluate(model, data, [PGD], state=tmp_path / "state")
    (tmp_path / "state/plan.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"plan.json is damaged .*remove state='.*state' to start over"):
        pt.evaluate(model, data, [PGD], state=tmp_path / "state")


@pytest.mark.some(1)
@pytest.mark.parametrize("content", [b"", b"\x00" * 40, b"half"])
def test_a_damaged_batch_of_autoattack_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    model, data = split()
    expected = pt.evaluate(model, data, [ATTACK], batch_size=3)
    with monkeypatch.context() as patched:
        killed_after(patched, 4)
        with pytest.raises(Killed):
            pt.evaluate(model, data, [ATTACK], batch_size=3, state=tmp_path / "state")
    file = sorted((tmp_path / "state/000000/0").glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:-5] if content == b"half" else content)
    with pytest.raises(ValueError, match=rf"{file} is damaged .*remove it, and its part is computed again"):
        pt.evaluate(model, data, [ATTACK], batch_size=3, state=tmp_path / "state")
    file.unlink()
    assert same(pt.evaluate(model, data, [ATTACK], batch_size=3, state=tmp_path / "state"), expected)


def test_a_report_that_a_full_disk_stopped_leaves_the_old_one_and_is_one_line(
    tmp_path: Path, limited: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    write_runs(tmp_path, points=2)
    (tmp_path / "report.html").write_text("old")
    limited(10_000)
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error == f"paretune: error: [Errno 27] File too large: '{tmp_path / 'report.html'}'\n"
    assert (tmp_path / "report.html").read_text() == "old"
    assert not list(tmp_path.glob(".*"))


def test_an_adapter_that_a_full_disk_stopped_leaves_the_old_one(
    tmp_path: Path, limited: Callable[[int], None]
) -> None:
    model = tiny.backbone(pt.LoRA(rank=2))
    pt.save_adapter(model, tmp_path / "adapter")
    before = {file.name: file.read_bytes() for file in (tmp_path / "adapter").iterdir()}
    limited(100)
    for save in (
        lambda: pt.save_adapter(model, tmp_path / "adapter"),
        lambda: pt.interchange.save_merged(model, tmp_path / "merged.safetensors"),
    ):
        with pytest.raises(
            OSError, match=rf"\[Errno {errno.EFBIG}\] .*{tmp_path}/(adapter|merged.safetensors)'"
        ):
            save()
    assert {file.name: file.read_bytes() for file in (tmp_path / "adapter").iterdir()} == before
    assert [each.name for each in tmp_path.iterdir()] == ["adapter"]


def test_what_a_library_cannot_write_into_a_directory_is_an_error_of_the_system(tmp_path: Path) -> None:
    def write(_: Path) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.raises(OSError, match=rf"\[Errno 28\] .*: '{tmp_path / 'made'}'"):
        write_directory(tmp_path / "made", "", write)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are read from /proc")
def test_the_adapter_is_durable_before_the_run_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    tiny.run(tmp_path / "run")
    done = next(number for number, name in enumerate(synced) if name.startswith(".DONE."))
    assert {file.name for file in (tmp_path / "run/adapter").iterdir()} <= {*synced[:done]}


def test_printing_to_a_full_disk_is_an_error_like_another() -> None:
    code = "import sys; from paretune.commands.cli import main; sys.exit(main(['info']))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "paretune: error: [Errno 28] No space left on device\n"


def die(*_: object, **__: object) -> None:
    os._exit(9)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_said_in_a_sentence_and_the_sweep_goes_on_later(
    tmp_path: Path,
    weights: str,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["compare", *SMALL, "--weights", weights, "--out", str(tmp_path / "runs"), "--seeds", "0"]
    command += ["--workers", "1", "--strategies", "bitfit,LoRA(rank=2)"]
    with monkeypatch.context() as patched:
        patched.setattr(local, "_make", die)
        assert main(command) == 2
    error = capsys.readouterr().err
    last = error.splitlines()[-1]  # after the bar
    assert "one of 1 worker processes ended abruptly: it was killed, or the memory ran out" in last
    assert main(command) == 0


def small(strategy: pt.strategies.Strategy) -> pt.Backbone:
    return pt.adapt(pt.load_backbone("timm:test_vit", num_classes=5, pretrained=False), strategy)


def of_transformers() -> pt.Backbone:
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=5)
    return pt.Backbone(transformers.ViTForImageClassification(config).eval(), image_size=16)


@pytest.mark.some(5)
@pytest.mark.parametrize("size", [0, 300, 3000])
@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("lora.pt", lambda path: pt.interchange.save_loralib(small(pt.LoRA(rank=2)), path)),
        ("lora.safetensors", lambda path: pt.interchange.save_loralib(small(pt.LoRA(rank=2)), path)),
        ("peft", lambda path: pt.interchange.save_peft(small(pt.LoRA(rank=2)), path)),
        ("timm", lambda path: pt.interchange.export_model(small(pt.LoRA(rank=2)), path, format="timm")),
        ("hf", lambda path: pt.interchange.export_model(of_transformers(), path, format="hf")),
    ],
    ids=["lora.pt", "lora.safetensors", "peft", "timm", "hf"],
)
def test_what_a_full_disk_does_not_take_of_an_export_is_named_and_nothing_is_left(
    name: str, save: Callable[[Path], object], size: int, tmp_path: Path, limited: Callable[[int], None]
) -> None:
    limited(size)
    with pytest.raises(OSError, match=rf"^\[Errno {errno.EFBIG}\] [^\n]*'{tmp_path / name}'$"):
        save(tmp_path / name)
    assert not list(tmp_path.rglob("*"))
    limited(resource.RLIM_INFINITY)
    save(tmp_path / name)


def test_the_file_of_loralib_does_not_depend_on_how_it_is_called_while_it_is_written(tmp_path: Path) -> None:
    model = small(pt.LoRA(rank=2))
    for name in ("one.pt", "two.pt"):
        pt.interchange.save_loralib(model, tmp_path / name)
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.pt").read_bytes()


def test_an_onnx_file_that_a_full_disk_stopped_leaves_the_old_one(
    tmp_path: Path, limited: Callable[[int], None]
) -> None:
    pytest.importorskip("onnxscript")
    (tmp_path / "m.onnx").write_bytes(b"old")
    limited(3000)
    with pytest.raises(OSError, match=rf"\[Errno {errno.EFBIG}\] .*'{tmp_path / 'm.onnx'}'"):
        pt.interchange.export_model(tiny.backbone(pt.BitFit()), tmp_path / "m.onnx", format="onnx")
    assert (tmp_path / "m.onnx").read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize(("size", "name"), [(0, "areas.csv"), (5000, "report.html")])
def test_an_analysis_that_a_full_disk_stopped_is_one_line(
    size: int, name: str, tmp_path: Path, limited: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "table.csv").write_text("method,clean,robust\na,0.9,0.4\nb,0.8,0.5\na,0.7,0.6\nb,0.85,0.3\n")
    limited(size)
    arguments = ["analyze", str(tmp_path / "table.csv"), "--group", "method", "--out"]
    assert main([*arguments, str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error == f"paretune: error: [Errno 27] File too large: '{tmp_path / 'out' / name}'\n"
    assert not list((tmp_path / "out").glob(".*"))


def test_a_download_that_the_disk_does_not_take_names_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_CACHE

    from paretune.interchange.hub import fetch

    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(OSError, match=rf"^\[Errno {errno.ENOSPC}\] .*'{HF_HUB_CACHE}'$"):
        fetch("hf:user/repo")
