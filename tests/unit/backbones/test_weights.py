"""Checkpoints of training scripts: which weights are taken, what is understood, and what is refused in one sentence."""

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import paretune as pt

PLAIN = {
    key: value.clone() for key, value in timm.create_model("test_resnet", num_classes=7).state_dict().items()
}
EMA = {key: value + 1 if value.is_floating_point() else value for key, value in PLAIN.items()}
LAYER = {
    "mean": torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1),
    "std": torch.tensor([0.2, 0.3, 0.25]).view(1, 3, 1, 1),
}
EMA_KEYS = ("state_dict_ema", "model_ema", "ema")


def _under(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


def _load(weights: Any, key: str | None = None) -> pt.Backbone:
    return pt.load_backbone("timm:test_resnet", num_classes=3, weights=weights, weights_key=key, img_size=32)


def _holds(model: pt.Backbone, state: dict[str, Any]) -> bool:
    own = model.module.state_dict()
    return all(torch.equal(own[key], value) for key, value in state.items() if not key.startswith("fc."))


@pytest.mark.parametrize("name", EMA_KEYS)
def test_averaged_weights_are_taken_as_timm_does_and_the_log_says_so(name, tmp_path, caplog) -> None:
    file = tmp_path / "last.pth"
    torch.save({"state_dict": PLAIN, name: EMA, "epoch": 3}, file)
    with caplog.at_level(logging.INFO, logger="paretune"):
        assert _holds(_load(file), EMA)
    assert f"{name!r} of {file}; weights_key='state_dict' takes others" in caplog.text
    assert _holds(_load(file, "state_dict"), PLAIN)
    assert _holds(_load(file, name), EMA)
    if name != "ema":
        theirs = timm.models.load_state_dict(str(file))
        assert all(torch.equal(theirs[key], value) for key, value in EMA.items())
    with pytest.raises(
        ValueError, match=rf"weights_key='nope' names no weights in .*it has {name}|it has .*state_dict"
    ):
        _load(file, "nope")


@pytest.mark.parametrize(
    ("checkpoint", "wanted"),
    [
        ({"model": PLAIN, "state_dict": EMA}, EMA),  # the order of timm
        ({"model": PLAIN, "model_ema": None}, PLAIN),
        ({"model": PLAIN, "ema": True, "ema_decay": 0.999}, PLAIN),
        ({"model": PLAIN, "ema": {"module": EMA, "updates": 3}}, EMA),
        ({"model": {"state_dict": PLAIN}, "model_ema": {"state_dict": EMA}}, EMA),
        ({"net": PLAIN, "acc": torch.tensor(93.1), "optimizer": {"state": {0: {"m": torch.ones(1)}}}}, PLAIN),
        ({"params": PLAIN, "params_ema": EMA}, EMA),
        ({"state_dict": {**_under("model.", PLAIN), **_under("model_ema.", EMA)}}, EMA),
        ({"n_averaged": torch.tensor(3), **_under("module.", PLAIN)}, PLAIN),  # torch's AveragedModel
    ],
)
def test_the_weights_in_a_container_are_found(checkpoint, wanted, tmp_path) -> None:
    torch.save(checkpoint, tmp_path / "c.pth")
    assert _holds(_load(tmp_path / "c.pth"), wanted)
    assert _holds(_load(checkpoint), wanted)


def test_keys_lead_into_what_is_nested() -> None:
    nested = {"model": {"state_dict": PLAIN}, "model_ema": {"state_dict": EMA}}
    assert _holds(_load(nested, "model.state_dict"), PLAIN)
    assert _holds(_load(nested, "model"), PLAIN)
    side_by_side = {"state_dict": {**_under("model.", PLAIN), **_under("model_ema.", EMA)}}
    assert _holds(_load(side_by_side, "state_dict.model"), PLAIN)
    with pytest.raises(ValueError, match="weights_key='x' chooses in a checkpoint: give one"):
        _load(None, "x")


@pytest.mark.parametrize("wrong", [0.999, "path", {"decay": 0.9, "shadow_params": [torch.ones(1)]}, {}])
def test_averages_in_another_form_are_not_passed_over(wrong) -> None:
    checkpoint = {"state_dict": PLAIN, "model_ema": wrong}
    with pytest.raises(
        ValueError, match=r"averaged weights under 'model_ema' .* choose others with weights_key: state_dict"
    ):
        _load(checkpoint)
    assert _holds(_load(checkpoint, "state_dict"), PLAIN)


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "model.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "net.",
        "backbone.",
        "1.",
        "model.0.",
    ],
)
def test_prefixes_of_wrappers_are_understood(prefix) -> None:
    assert _holds(_load({"state_dict": _under(prefix, PLAIN)}), PLAIN)
    mixed = {key if key.startswith("fc") else prefix + key: value for key, value in PLAIN.items()}
    assert _holds(_load(mixed), PLAIN)


def test_two_models_in_one_state_dict_are_told_apart_or_refused() -> None:
    with pytest.raises(ValueError, match=r"twice, under other prefixes; choose one with weights_key"):
        _load({**_under("module.", PLAIN), **_under("net.", EMA)})
    assert _holds(_load({**_under("module.", PLAIN), **_under("net.", EMA)}, "net"), EMA)


def test_what_lies_beside_the_model_is_left_out_with_a_word(caplog) -> None:
    assert _holds(_load({**_under("model.", PLAIN), "criterion.weight": torch.ones(3)}), PLAIN)
    assert (
        "left out, as they lie beside the model in the state dict given as weights: criterion.weight"
        in caplog.text
    )
    with pytest.raises(ValueError, match=r"unexpected criterion\.weight"):
        _load({**PLAIN, "criterion.weight": torch.ones(3)})


@pytest.mark.parametrize(
    "weights",
    [
        {**_under("0.", LAYER), **_under("1.", PLAIN)},
        {"state_dict": {**_under("module.0.", LAYER), **_under("module.1.", PLAIN)}},
        {**_under("normalize.", LAYER), **_under("model.", PLAIN)},
        {"mu": LAYER["mean"].flatten(), "sigma": LAYER["std"], **PLAIN},
        {
            "model": {
                **_under("module.model.", PLAIN), "module.normalizer.new_mean": LAYER["mean"],
                "module.normalizer.new_std": LAYER["std"], "module.attacker.normalize.new_mean": LAYER["mean"],
                "module.attacker.normalize.new_std": LAYER["std"], **_under("module.attacker.model.", PLAIN),
            }
        },
        {
            **_under("model.0.", LAYER), **_under("model.1.", EMA),
            **_under("model_ema.0.", LAYER), **_under("model_ema.1.", PLAIN),
        },
    ],
    ids=["sequential", "parallel", "named", "robustbench", "robustness", "averaged"],
)  # fmt: skip
def test_a_normalisation_layer_in_front_becomes_that_of_the_backbone(weights) -> None:
    model = _load(weights)
    assert _holds(model, PLAIN)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), model.module((images - LAYER["mean"]) / LAYER["std"]))


def test_one_number_normalises_every_channel() -> None:
    model = _load({"0.mean": torch.tensor(0.5), "0.std": torch.tensor(0.25), **_under("1.", PLAIN)})
    assert model.mean.flatten().tolist() == [0.5] * 3
    assert model.std.flatten().tolist() == [0.25] * 3


@pytest.mark.parametrize(
    ("front", "message"),
    [
        (
            _under("0.", {key: 255 * value for key, value in LAYER.items()}),
            r"not those of images in \[0, 1\]",
        ),
        ({"0.mean": LAYER["mean"], "0.std": torch.zeros(3)}, r"not those of images in \[0, 1\]"),
        ({"0.mean": LAYER["mean"]}, "no single mean and std"),
        ({**_under("0.", LAYER), "other.mean": torch.zeros(3)}, "no single mean and std"),
        ({"0.mean": torch.zeros(2), "0.std": torch.ones(2)}, "has 2 channels, its images have 3"),
        ({"0.weight": torch.ones(3, 3, 1, 1)}, r"unexpected 0\.weight"),
    ],
)
def test_what_comes_in_front_and_cannot_be_honoured_is_refused(front, message) -> None:
    with pytest.raises(ValueError, match=message):
        _load({**front, **_under("1.", PLAIN)})


def test_arguments_and_scores_of_a_training_script_are_harmless(tmp_path) -> None:
    torch.save(
        {
            "state_dict": PLAIN,
            "args": argparse.Namespace(lr=0.1),
            "metric": np.float64(3.0),
            "n": np.int64(2),
            "arch": "r",
        },
        tmp_path / "t.pth",
    )
    assert _holds(_load(tmp_path / "t.pth"), PLAIN)


def test_files_are_recognised_by_what_they_hold(tmp_path) -> None:
    save_file(PLAIN, tmp_path / "named.pth")
    torch.save(PLAIN, tmp_path / "named.safetensors")
    torch.save(PLAIN, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("named.pth", "named.safetensors", "old.pth"):
        assert _holds(_load(tmp_path / name), PLAIN)


class Evil:
    """What runs code when it is read."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (eval, (f"__import__('pathlib').Path({str(self.touched)!r}).touch()",))


def _damaged(directory: Path) -> dict[str, Path]:
    files = {
        name: directory / name
        for name in ("cut.safetensors", "cut.pth", "cut_old.pth", "none.pth", "none.safetensors")
    }
    files |= {
        name: directory / name
        for name in ("noise.pth", "noise.safetensors", "whole.pth", "evil.pth", "list.pth", "n.npz")
    }
    files |= {name: directory / name for name in ("script.pt", "empty.pth", "text.pth", "missing.pth")}
    save_file(PLAIN, files["cut.safetensors"])
    torch.save(PLAIN, files["cut.pth"])
    torch.save(PLAIN, files["cut_old.pth"], _use_new_zipfile_serialization=False)
    for name in ("cut.safetensors", "cut.pth", "cut_old.pth"):
        content = files[name].read_bytes()
        files[name].write_bytes(content[: len(content) // 2])
    for name in ("none.pth", "none.safetensors"):
        files[name].write_bytes(b"")
    for name in ("noise.pth", "noise.safetensors"):
        files[name].write_bytes(np.random.default_rng(0).bytes(1000))
    torch.save(nn.Linear(2, 2), files["whole.pth"])
    torch.save({"state_dict": PLAIN, "x": Evil(directory / "ran")}, files["evil.pth"])
    torch.save([PLAIN], files["list.pth"])
    torch.save({}, files["empty.pth"])
    torch.save({"epoch": 1}, files["text.pth"])
    np.savez(files["n.npz"], a=np.ones(3))
    return files


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_damaged_and_foreign_files_are_refused_in_one_sentence_with_their_path(tmp_path) -> None:
    files = _damaged(tmp_path)
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), files["script.pt"])
    for file in (*files.values(), tmp_path):
        with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
            _load(file)
        assert str(file) in str(caught.value)
        assert "weights_only" not in str(caught.value)
    for name, message in (
        ("whole.pth", "holds Python objects"),
        ("none.pth", "is an empty file"),
        ("script.pt", "TorchScript"),
    ):
        with pytest.raises(ValueError, match=message):
            _load(files[name])
    assert not (tmp_path / "ran").exists()


def test_integers_are_no_weights() -> None:
    packed = {key: value.to(torch.int8) if value.ndim == 4 else value for key, value in PLAIN.items()}
    with pytest.raises(ValueError, match="holds int8, no plain floating-point numbers"):
        _load(packed)
    assert _holds(
        _load({key: value.double() if value.is_floating_point() else value for key, value in PLAIN.items()}),
        PLAIN,
    )


def test_the_command_line_and_runs_choose_too(tmp_path) -> None:
    from paretune.commands._loading import load_adapted
    from paretune.sweeps.config import TaskConfig

    torch.save({"state_dict": PLAIN, "state_dict_ema": EMA}, tmp_path / "c.pth")
    task = TaskConfig(
        backbone="timm:test_resnet", weights=str(tmp_path / "c.pth"), weights_key="state_dict", img_size=32
    )
    model = task.load_backbone(3, 0)
    assert _holds(model, PLAIN)
    pt.save_adapter(pt.adapt(model, pt.LoRA(rank=2)), tmp_path / "a")
    assert load_adapted(str(tmp_path / "a"), None, str(tmp_path / "c.pth"), "state_dict")[0].num_classes == 3
    with pytest.raises(ValueError, match="trained on other base weights"):
        load_adapted(str(tmp_path / "a"), None, str(tmp_path / "c.pth"))


@pytest.mark.parametrize(
    ("checkpoint", "key"),
    [
        ({"state_dict": PLAIN, "swa_state_dict": EMA}, "swa_state_dict"),
        ({"model": PLAIN, "averaged_model": _under("module.", EMA)}, "averaged_model"),
        ({"model": PLAIN, "model_ema2": EMA, "optimizer": {"state": {0: {"exp_avg": EMA}}}}, "model_ema2"),
        ({"model": PLAIN, "modelEMA": EMA}, "modelEMA"),
        (
            {"state_dict": PLAIN, "callbacks": {"Averaging": {"ema_weights": EMA}}},
            "callbacks.Averaging.ema_weights",
        ),
        ({"model": PLAIN, "ema": {"shadow": EMA, "decay": 0.9}}, "ema.shadow"),
        ({**_under("net.", PLAIN), **_under("net_ema.", EMA)}, "net_ema"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_averaged_weights_under_an_unknown_name_are_not_passed_by(checkpoint: Any, key: str) -> None:
    with pytest.raises(ValueError, match=f"averaged weights under '{key}'.* weights_key .*{key}"):
        _load(checkpoint)
    assert _holds(_load(checkpoint, key), EMA)


def test_averaged_weights_in_a_list_are_refused() -> None:
    with pytest.raises(ValueError, match="averaged weights under 'ema' in a form that is not understood"):
        _load({"model": PLAIN, "ema": [*EMA.values()]})
    assert _holds(_load({"model": PLAIN, "ema": 0.999}), PLAIN)


@pytest.mark.parametrize(
    ("mean", "std"), [("pixel_mean", "pixel_std"), ("0.norm_mean", "0.norm_std"), ("data_mu", "data_sigma")]
)
def test_a_normalisation_layer_has_many_names(mean: str, std: str) -> None:
    model = _load({mean: LAYER["mean"], std: LAYER["std"], **_under("model.", PLAIN)})
    assert _holds(model, PLAIN)
    assert torch.equal(model.mean, LAYER["mean"])
    assert torch.equal(model.std, LAYER["std"])


def test_paths_among_the_arguments_of_a_script_are_read(tmp_path: Path) -> None:
    args = argparse.Namespace(output=tmp_path, names={"a": Path("b")})
    torch.save({"model": PLAIN, "args": args}, tmp_path / "last.pth")
    assert _holds(_load(tmp_path / "last.pth"), PLAIN)
