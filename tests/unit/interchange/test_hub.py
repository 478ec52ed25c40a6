"""Adapters travel over the hub: exactly our files, whole, and back with the same logits."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

import paretune as pt
from paretune.interchange.hub import FILES, fetch, push_to_hub
from tests import tiny
from tests.hub import TOKEN, Hub, hub

# httpx, about how huggingface_hub calls it.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub() as running:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield running


@pytest.fixture
def adapter(tmp_path: Path) -> tuple[Path, pt.Backbone]:
    model = tiny.backbone(pt.LoRA(rank=2))
    with torch.no_grad():
        for parameter in pt.strategies.trainable_parameters(model).values():
            parameter.normal_(std=0.3)
    model.eval()
    return pt.save_adapter(model, tmp_path / "adapter"), model


def plain() -> pt.Backbone:
    return pt.remove_adapter(tiny.backbone(pt.LoRA(rank=2)))


def test_an_adapter_comes_back_with_the_same_logits(server, adapter) -> None:
    directory, model = adapter
    sent = push_to_hub(directory, "me/lora", token=TOKEN)
    assert sent.url.startswith(f"{server.url}/me/lora/commit/")
    repo = server.repos["me/lora"]
    assert repo.private
    assert {*repo.at("main")[1]} == {".gitattributes", *(path.name for path in directory.iterdir())}
    assert (
        repo.at("main")[1]["adapter_model.safetensors"]
        == (directory / "adapter_model.safetensors").read_bytes()
    )
    assert dict(sent.files)["paretune.json"] == (directory / "paretune.json").stat().st_size
    assert server.messages == ["Adapter LoRA(rank=2)"]
    server.repos["me/lora"].private = False
    loaded = pt.load_adapter(plain(), "hf:me/lora")
    images = torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


def test_the_card_on_the_hub_names_its_repository(server, adapter) -> None:
    directory, _ = adapter
    push_to_hub(directory, "me/lora", token=TOKEN)
    card = server.repos["me/lora"].at("main")[1]["README.md"].decode()
    assert 'paretune.load_adapter(model, "hf:me/lora")' in card
    assert "USER/REPO" not in card
    assert "USER/REPO" in (directory / "README.md").read_text()


def test_only_our_files_go_up(server, adapter) -> None:
    directory, _ = adapter
    (directory / "optimizer.pt").write_bytes(b"\x80\x04.")
    (directory / "secrets.env").write_text("KEY=1")
    push_to_hub(directory, "me/lora", token=TOKEN)
    assert {*server.repos["me/lora"].at("main")[1]} <= {".gitattributes", *FILES}


def test_only_our_files_come_down(server, adapter) -> None:
    directory, _ = adapter
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    hostile = {"pytorch_model.bin": b"\x80\x04.", "x/README.md": b"", "setup.py": b"raise SystemExit"}
    server.put("you/lora", {**files, **hostile})
    found = fetch("hf:you/lora")
    assert {path.name for path in found.rglob("*")} == {*files}
    assert not [line for line in server.asked if any(name in line for name in hostile)]


def test_a_repository_with_pickles_only_is_refused(server) -> None:
    server.put("you/pickle", {"adapter_model.bin": b"\x80\x04.", "README.md": b"# hi"})
    with pytest.raises(FileNotFoundError, match=r"no adapter_model.safetensors.*pickle"):
        fetch("hf:you/pickle")


def test_a_second_push_replaces_the_first_and_spares_what_is_not_ours(server, adapter, tmp_path) -> None:
    directory, _ = adapter
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    server.put("me/lora", {**files, "adapter_config.json": b"{}", "demo.png": b"png"})
    other = pt.save_adapter(tiny.backbone(pt.BitFit()).eval(), tmp_path / "other")
    assert not (other / "adapter_config.json").exists()
    push_to_hub(other, "me/lora", token=TOKEN)
    after = server.repos["me/lora"].at("main")[1]
    assert {*after} == {"demo.png", *(path.name for path in other.iterdir())}
    assert after["paretune.json"] == (other / "paretune.json").read_bytes()


def test_a_revision_is_a_branch_and_a_commit_stays_what_it_was(server, adapter, tmp_path) -> None:
    directory, _ = adapter
    push_to_hub(directory, "me/lora", token=TOKEN)
    commit, _ = server.repos["me/lora"].at("main")
    other = pt.save_adapter(tiny.backbone(pt.BitFit()).eval(), tmp_path / "other")
    push_to_hub(other, "me/lora", token=TOKEN, revision="bitfit")
    push_to_hub(other, "me/lora", token=TOKEN)

    def call(reference: str) -> str:
        return pt.interchange.read_adapter(fetch(reference, token=TOKEN))[0]["call"]

    assert call("hf:me/lora@bitfit") == "BitFit()"
    assert call("hf:me/lora") == "BitFit()"
    assert call(f"hf:me/lora@{commit}") == "LoRA(rank=2)"


def test_a_dry_run_contacts_nobody(server, adapter) -> None:
    directory, _ = adapter
    planned = push_to_hub(directory, "me/lora", dry_run=True)
    assert server.asked == []
    assert planned.url is None
    assert [name for name, _ in planned.files] == [name for name in FILES if (directory / name).exists()]
    assert planned.files == push_to_hub(directory, "me/lora", token=TOKEN).files


def test_a_damaged_adapter_is_not_uploaded(server, adapter) -> None:
    directory, _ = adapter
    tensors = directory / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-4])
    with pytest.raises(ValueError, match="damaged"):
        push_to_hub(directory, "me/lora", token=TOKEN)
    shutil.rmtree(directory)
    with pytest.raises(FileNotFoundError, match=r"paretune\.json"):
        push_to_hub(directory, "me/lora", token=TOKEN)
    assert server.asked == []


def test_refusals_of_the_hub_are_errors_of_the_system(server, adapter) -> None:
    directory, _ = adapter
    with pytest.raises(OSError, match="401"):
        push_to_hub(directory, "me/lora", token="hf_wrong")
    server.put("you/private", {"paretune.json": b"{}"}, private=True)
    with pytest.raises(OSError, match=r"you/private"):
        fetch("hf:you/private")
    with pytest.raises(OSError, match=r"you/none"):
        fetch("hf:you/none")
    server.put("you/lora", {"README.md": b""})
    with pytest.raises(OSError, match=r"v9"):
        fetch("hf:you/lora@v9")


def test_a_hub_that_is_not_there_is_an_error_of_the_system(server, adapter, monkeypatch) -> None:
    directory, _ = adapter
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    for act in (lambda: push_to_hub(directory, "me/lora", token=TOKEN), lambda: fetch("hf:me/lora")):
        with pytest.raises(OSError, match=r"(?i)hub"):
            act()


@pytest.mark.parametrize(
    "name", ["lora", "me/lora/x", "../lora", "me/..", "me/lora@main", "", "me/lo ra", "-me/lora", "me/lora\n"]
)
def test_impossible_names_of_repositories_are_refused(server, adapter, name: str) -> None:
    directory, _ = adapter
    with pytest.raises(ValueError, match="user/repo"):
        push_to_hub(directory, name, token=TOKEN)
    with pytest.raises(ValueError, match="user/repo"):
        fetch(f"hf:{name}@" if "@" in name else f"hf:{name}")
    assert server.asked == []


def test_a_base_that_is_a_path_is_pointed_out(server, adapter, tmp_path, caplog) -> None:
    model = tiny.backbone(pt.LoRA(rank=2)).eval()
    model.source = f"hf:{tmp_path}"
    push_to_hub(pt.save_adapter(model, tmp_path / "b"), "me/lora", dry_run=True)
    assert "a path of this machine" in caplog.text
