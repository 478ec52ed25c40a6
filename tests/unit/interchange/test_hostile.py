"""Files made to harm are refused with a reason: nothing runs, nothing is allocated, nothing outside is read."""

import json
import os
import resource
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import paretune as pt
from paretune.interchange import detect, import_adapter, read_adapter
from paretune.interchange.reading import LARGEST_JSON, member, read_checkpoint, read_json, read_tensors
from tests.contracts.backbones import make
from tests.unit.interchange.helpers import adapted

HUGE = 10**12


def safetensors(
    path: Path, header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None
) -> Path:
    """A file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def described(shape: list[int], end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": described([HUGE], 4 * HUGE)}, b"\0" * 64),
        ({"a": described([HUGE], 4)}, b"\0" * 4),
        ({"a": described([2**40, 2**40], 4)}, b"\0" * 4),
        ({"a": described([1], 4), "b": described([1], 4)}, b"\0" * 4),  # one place for two
        ({"a": described([1], 4)}, b"\0" * 400),  # more than is described
        ({"a": {"dtype": "F1", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
        (b"[" * 200_000, b""),
        (b"{", b""),
        (b"", b""),
    ],
    ids=[
        "huge",
        "larger than its place",
        "overflow",
        "shared",
        "hidden data",
        "unknown type",
        "deep",
        "half",
        "empty",
    ],
)
def test_shapes_that_the_file_does_not_hold_are_refused(
    header: dict[str, Any] | bytes, data: bytes, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="is damaged"):
        read_tensors(safetensors(tmp_path / "a.safetensors", header, data))


def test_a_header_said_to_be_huge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is damaged"):
        read_tensors(safetensors(tmp_path / "a.safetensors", {}, length=2**62))


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "a\\b", "a\nb", "", "x" * 600, "a..b"])
def test_names_that_no_module_has_are_refused(name: str, tmp_path: Path) -> None:
    save_file({name: torch.ones(1)}, tmp_path / "a.safetensors")
    torch.save({name: torch.ones(1)}, tmp_path / "a.pt")
    for read in (
        lambda: read_tensors(tmp_path / "a.safetensors"),
        lambda: read_checkpoint(tmp_path / "a.pt"),
    ):
        with pytest.raises(ValueError, match="impossible name"):
            read()


class Runs:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["lora.pt", "adapter_model.bin", "adapter_model.safetensors"])
def test_code_in_a_pickle_does_not_run(name: str, tmp_path: Path) -> None:
    directory = tmp_path / "a"
    directory.mkdir()
    mark = tmp_path / "it-ran"
    torch.save({"blocks.0.mlp.fc1.lora_A": Runs(mark)}, directory / name)
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "target_modules": ["fc1"]}')
    with pytest.raises(ValueError, match=r"without running code|is damaged"):
        import_adapter(make("test_vit"), directory / name if name == "lora.pt" else directory)
    assert not mark.exists()
    (directory / name).rename(
        directory / "as-it-is"
    )  # by its name, torch would read the third one as safetensors
    torch.load(directory / "as-it-is", weights_only=False)
    assert mark.exists()  # it would have


def test_a_tensor_that_unfolds_beyond_its_file_is_refused(tmp_path: Path) -> None:
    torch.save({"fc1.lora_A": torch.zeros(1).expand(HUGE)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="larger than the file that holds it"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    torch.save({"fc1.lora_A": torch.zeros(1_000_000)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as plain,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    assert (tmp_path / "b.pt").stat().st_size < 10_000
    with pytest.raises(ValueError, match="is compressed"):
        read_checkpoint(tmp_path / "b.pt")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"hello", b"\x80\x04."])
def test_what_is_no_archive_of_tensors_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match="no file of tensors that can be read without running code"):
        detect(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "content", [[torch.ones(1)], {"a": "text"}, {"a": {"b": torch.ones(1)}}, torch.ones(1)]
)
def test_what_is_no_state_dict_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_checkpoint(tmp_path / "a.pt")


def test_links_are_followed_within_the_directory_and_in_the_cache_of_the_hub_only(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    directory = tmp_path / "adapter"
    directory.mkdir()
    (directory / "real.json").write_text("{}")
    (directory / "inside.json").symlink_to("real.json")
    (directory / "outside.json").symlink_to(tmp_path / "secret.json")
    (directory / "up.json").symlink_to("../secret.json")
    assert member(directory, "inside.json").exists()
    for name in ("outside.json", "up.json"):
        with pytest.raises(ValueError, match="is a link that leads out of its directory"):
            member(directory, name)
    os.mkfifo(directory / "pipe.json")
    (directory / "folder.json").mkdir()
    (directory / "endless.json").symlink_to("/dev/zero")
    for name in ("pipe.json", "folder.json"):
        with pytest.raises(ValueError, match="is no file"):
            member(directory, name)
    with pytest.raises(ValueError, match="leads out"):
        member(directory, "endless.json")

    snapshot = tmp_path / "hub/models--me--mine/snapshots/0a1b"
    snapshot.mkdir(parents=True)
    blobs = tmp_path / "hub/models--me--mine/blobs"
    blobs.mkdir()
    (blobs / "77").write_text("{}")
    (snapshot / "a.json").symlink_to("../../blobs/77")
    (snapshot / "b.json").symlink_to("../../../../secret.json")
    assert member(snapshot, "a.json").exists()
    with pytest.raises(ValueError, match="leads out"):
        member(snapshot, "b.json")


def test_descriptions_are_small_and_flat(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.touch()
    os.truncate(path, LARGEST_JSON + 1)  # a hole: it takes no place
    with pytest.raises(ValueError, match="a description has at most"):
        read_json(path)
    for text in ("[" * 100_000, "[1, 2]", "7", "{", "\udcff"):
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(ValueError, match="is damaged"):
            read_json(path)


HUGE_STRATEGIES: list[dict[str, Any]] = [
    {"name": "LoRA", "rank": HUGE},
    {"name": "Adapter", "reduction": 1e-12},
    {"name": "Compacter", "rank": HUGE},
    {"name": "Compacter", "n": 16, "rank": HUGE},
    {"name": "VisualPrompt", "kind": "deep", "size": 1_000_000},
    {"name": "VisualPrompt", "kind": "deep", "size": 10**30},
    {"name": "Nothing"},
    {"name": ["LoRA"]},
    {"name": "LoRA", "targets": "((((", "rank": 1},
    {"name": "LoRA", "rank": float(HUGE)},
]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pt.save_adapter(
        adapted("test_vit", pt.LoRA(rank=2) + pt.BitFit()), tmp_path_factory.mktemp("x") / "a"
    )


@pytest.mark.parametrize("strategy", HUGE_STRATEGIES, ids=str)
def test_a_strategy_of_any_size_costs_nothing(strategy: dict[str, Any], good: Path, tmp_path: Path) -> None:
    """It is tried on a model without values, and there its shapes differ from those of the file."""
    directory = shutil.copytree(good, tmp_path / "a")
    config = json.loads((directory / "paretune.json").read_text())
    config["strategy"] = strategy
    (directory / "paretune.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=str(directory) + "|unknown name|must be|matches no|does not divide|widths?"
    ):
        pt.load_adapter(make("test_vit"), directory)


def test_a_layout_of_any_size_costs_nothing(tmp_path: Path) -> None:
    """The rows that ``paretune.json`` claims are compared with those of the file before they are laid out."""
    directory = pt.save_adapter(adapted("test_vit", pt.LoRA(rank=2, targets="q")), tmp_path / "a")
    config = json.loads((directory / "paretune.json").read_text())
    config["tensors"]["blocks.0.attn.qkv.lora_B"]["shape"] = [HUGE, 2]
    (directory / "paretune.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"has 192 rows, fewer than {HUGE}"):
        read_adapter(directory)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**20) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def replaced(content: Any, draw: st.DataObject) -> Any:
    """``content`` with another value somewhere in it."""
    if isinstance(content, dict) and content and draw.draw(st.integers(0, 3)):
        key = draw.draw(st.sampled_from(sorted(content)))
        return content | {key: replaced(content[key], draw)}
    if isinstance(content, list) and content and draw.draw(st.integers(0, 3)):
        index = draw.draw(st.integers(0, len(content) - 1))
        return [*content[:index], replaced(content[index], draw), *content[index + 1 :]]
    return draw.draw(ODD)


@pytest.mark.some(1)
@pytest.mark.parametrize("name", ["paretune.json", "adapter_config.json"])
@settings(max_examples=30)
@given(data=st.data())
def test_any_other_description_is_read_or_refused(
    name: str, good: Path, tmp_path_factory: Any, data: Any
) -> None:
    """Whatever is written in its place, there is no error but one that says why, and then the model is as it was."""
    directory = tmp_path_factory.mktemp("fuzz") / "a"
    shutil.copytree(good, directory)
    content = json.loads((directory / name).read_text())
    (directory / name).write_text(json.dumps(replaced(content, data)))
    if name == "adapter_config.json":
        (directory / "paretune.json").unlink()
    model = make("test_vit")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        pt.load_adapter(model, directory)
    except ValueError:
        now = model.state_dict()
        assert list(now) == list(before)
        assert all(torch.equal(now[key], before[key]) for key in before)


def test_the_untouched_directory_is_read(good: Path) -> None:
    """What the tests above change is good."""
    assert read_adapter(good)[0]["call"] == "LoRA(rank=2) + BitFit()"
    assert pt.load_adapter(make("test_vit"), good)


@pytest.mark.parametrize(
    "kind", ["LORA", "LOHA", "LOKR", "HRA", "SHIRA", "BOFT", "OFT", "RANDLORA", "WAVEFT", "MISS"]
)
@pytest.mark.parametrize("size", [2**31, HUGE])
def test_a_tuner_of_peft_of_any_size_costs_nothing(kind: str, size: int, good: Path, tmp_path: Path) -> None:
    """It is tried on a copy that makes no tensor far larger than the model."""
    field = {"BOFT": "boft_block_size", "OFT": "oft_block_size", "WAVEFT": "n_frequency"}.get(kind, "r")
    directory = shutil.copytree(good, tmp_path / "a")
    config = json.loads((directory / "paretune.json").read_text())
    config["strategy"] = {
        "name": "Peft",
        "config": {"peft_type": kind, field: size, "target_modules": ["fc1"]},
        "bn": "frozen",
        "where": ["all"],
    }
    (directory / "paretune.json").write_text(json.dumps(config))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"Peft|does not fit"):
        pt.load_adapter(make("test_vit"), directory)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
