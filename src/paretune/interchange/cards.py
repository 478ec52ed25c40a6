"""``README.md`` of an adapter directory: a model card in the form of the Hugging Face hub.

A YAML head that the hub reads (https://huggingface.co/docs/hub/model-cards), then what a person needs before using the
adapter: the lines that load it, what it withstands, how that was measured, and what the numbers do not say. Everything
comes from ``paretune.json``; its ``notes`` hold what is known of the training. Training writes these, all of them optional:

- ``objective``, ``epsilon_schedule``, ``freezing``, ``augmentation``: calls, as text; ``steps``, ``seed``
- ``data``: ``name``, ``fingerprint``, ``train`` and ``report`` (numbers of images)
- ``results``: a list of ``attack``, ``threat``, ``epsilon``, ``clean``, ``robust``, ``examples``
- ``findings``: a list of ``step`` and ``finding``, what went wrong

:func:`~paretune.interchange.card_notes.update_card` adds ``license`` and ``areas``. Other notes are shown as they are.
"""

import json
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import yaml

from paretune.data.sizes import checked_size
from paretune.runs.naming import attack_text, epsilon_text, threat_text

CARD = "README.md"
PLACEHOLDER = "hf:USER/REPO"  # in the card, until the adapter has a place on the hub
_RESULT = {"attack": str, "threat": str, "epsilon": float, "clean": float, "robust": float, "examples": int}
_AREA = {"task": str, "attack": str, "threat": str, "epsilon": float, "area": float, "low": float}
_AREA |= {"high": float, "level": float, "rank": int, "of": int, "points": int, "seeds": int}
_FINDING = {"step": int, "finding": str}
_TEXTS = (
    *("objective", "epsilon_schedule", "freezing", "augmentation"),
    *("license", "base_model", "steps", "seed"),
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def card(config: Mapping[str, Any]) -> str:
    """The model card of an adapter.

    Args:
        config: content of ``paretune.json``.
    """
    head = yaml.safe_dump(_metadata(config), sort_keys=False, allow_unicode=True, width=100)
    parts = [part(config) for part in (_title, _loading, _training, _results, _areas, _limits)]
    return f"---\n{head}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the hub reads."""
    notes, strategy = config["notes"], str(config["strategy"]["name"])
    data = _data(notes)
    metadata: dict[str, Any] = {"library_name": "paretune", "pipeline_tag": "image-classification"}
    if notes.get("license"):
        metadata["license"] = _line(notes["license"])
    base = notes.get("base_model") or _hub_id(config["base"])
    if base:
        metadata |= {"base_model": _line(base), "base_model_relation": "adapter"}
    tag = re.sub(r"[^a-z0-9-]+", "-", strategy.lower())
    metadata["tags"] = ["paretune", "adversarial-robustness", "peft", tag]
    results = _rows(notes, "results", _RESULT)
    if results:
        name = _line(data.get("name", "unnamed"))
        metrics = [{"type": "accuracy", "name": "Clean accuracy", "value": results[0]["clean"]}]
        for row in results:
            under = f"Accuracy under {_line(attack_text(row['attack']))}"
            metrics.append({"type": "robust_accuracy", "name": under, "value": row["robust"]})
        metadata["metrics"] = ["accuracy"]
        metadata["model-index"] = [
            {
                "name": _line(call_on(config)),
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"type": re.sub(r"[^A-Za-z0-9._/-]+", "-", name), "name": name},
                        "metrics": metrics,
                    }
                ],
            }
        ]
    return metadata


def _title(config: Mapping[str, Any]) -> str:
    return (
        f"# {_text(call_on(config))}\n\n"
        "An adapter for a classifier of images, made by paretune. It holds what training changed, the head included; the "
        "weights of the base are not in it."
    )


def _loading(config: Mapping[str, Any]) -> str:
    base, preprocessing = config["base"], config.get("preprocessing") or {}
    source = base.get("source")
    recorded = preprocessing.get("image_size")
    size = f", img_size={checked_size('image_size', recorded)}" if recorded else ""
    model = (
        f"paretune.load_backbone({_line(source)!r}, num_classes={int(config['num_classes'])}{size})"
        if source
        else "...  # your model, with the base weights below"
    )
    lines = [
        "## How to load it",
        "",
        "```python",
        "import paretune",
        "",
        f"model = {model}",
        f'paretune.load_adapter(model, "{PLACEHOLDER}")  # or the path of this directory',
        "```",
        "",
        f"- base: {_code(base['architecture'])}; its weights have the fingerprint {_code(base['fingerprint'])}, others "
        "are refused",
    ]
    if preprocessing:
        shown = {key: preprocessing[key] for key in ("mean", "std", "channel_order") if key in preprocessing}
        lines.append(
            f"- images: pixels in [0, 1]; the backbone normalises them with {_code(json.dumps(shown))}"
        )
    classes = config.get("classes") or []
    listed = ", ".join(_text(name) for name in classes[:20]) + (", …" if len(classes) > 20 else "")
    lines.append(f"- {int(config['num_classes'])} classes" + (f": {listed}" if classes else ""))
    if config.get("peft"):
        lines.append(
            "- the directory is one of [peft](https://huggingface.co/docs/peft) too: `peft.PeftModel.from_pretrained` "
            "reads it"
        )
    return "\n".join(lines)


def _training(config: Mapping[str, Any]) -> str:
    notes, data = config["notes"], _data(config["notes"])
    rows = [("strategy", _code(config["call"]))]
    named = {
        "objective": "objective",
        "epsilon_schedule": "strength of the attack over training",
        "freezing": "what trains when",
        "augmentation": "augmentation of the training images",
    }
    for key, name in named.items():
        if notes.get(key):
            rows.append((name, _code(attack_text(str(notes[key])))))
    if data:
        counts = [f"{data[key]:,} images to {key}" for key in ("train", "report") if key in data]
        text = _code(data.get("name", "unnamed"))
        if data.get("fingerprint"):
            text += f", fingerprint {_code(data['fingerprint'])}"
        rows.append(("data", ", ".join([text, *counts])))
    rows += [(key, _code(notes[key])) for key in ("steps", "seed") if notes.get(key) is not None]
    rows += [
        (_text(key), _code(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
        for key, value in notes.items()
        if not _is_shown(notes, key)
    ]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(config.get("versions", {}).items()))
    if versions:
        rows.append(("made with", _text(versions)))
    return "\n".join(["## Training", "", *(f"- {name}: {value}" for name, value in rows)])


def _results(config: Mapping[str, Any]) -> str:
    rows = _rows(config["notes"], "results", _RESULT)
    if not rows:
        return ""
    lines = [
        "## What it withstands",
        "",
        "Accuracies on the report split, which took no part in training or in any choice.",
        "",
        "| threat model | attack | clean | robust | images |",
        "|---|---|---:|---:|---:|",
    ]
    for row in rows:
        threat = threat_text(row["threat"], row["epsilon"])
        numbers = f"{row['clean']:.1%} | {row['robust']:.1%} | {row['examples']:,}"
        lines.append(f"| {_text(threat)} | {_text(attack_text(row['attack']))} | {numbers} |")
    epsilons = sorted({row["epsilon"] for row in rows})
    lines += ["", f"ε ({', '.join(map(epsilon_text, epsilons))}) is in units of the pixel range, [0, 1]."]
    return "\n".join(lines)


def _areas(config: Mapping[str, Any]) -> str:
    rows = _rows(config["notes"], "areas", _AREA)
    if not rows:
        return ""
    lines = [
        "## The frontier of its strategy",
        "",
        "Normalised area under the robustness-accuracy frontier of this strategy's runs, of which this adapter is one: "
        "checkpoints chosen on the select split, measured on the report split.",
        "",
        "| task | threat model | attack | area | interval | rank | points a run | seeds |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        interval = f"{row['low']:.3f} to {row['high']:.3f} ({row['level']:.0%})"
        threat = threat_text(row["threat"], row["epsilon"])
        texts = f"{_text(row['task'])} | {_text(threat)} | {_text(attack_text(row['attack']))}"
        rank = f"{row['rank']} of {row['of']}"
        lines.append(
            f"| {texts} | {row['area']:.3f} | {interval} | {rank} | {row['points']} | {row['seeds']} |"
        )
    return "\n".join(lines)


def _limits(config: Mapping[str, Any]) -> str:
    lines = [
        "## Limits",
        "",
        "- A robust accuracy is what is left under one attack. It is an upper bound on what is left under the strongest "
        "attack within the threat model, not a certificate.",
        "- It says nothing of other threat models: larger ε, other norms, rotations, patches, natural shifts.",
        "- The numbers are of the data named above, at its resolution, and of one training seed.",
    ]
    if not _rows(config["notes"], "results", _RESULT):
        unmeasured = "No measurement came with this adapter: measure it before relying on it"
        lines[2:] = [f"- {unmeasured}, with `paretune evaluate`."]
    lines += [
        f"- During training, at step {row['step']}: {_text(row['finding'])}"
        for row in _rows(config["notes"], "findings", _FINDING)
    ]
    return "\n".join(lines)


def call_on(config: Mapping[str, Any]) -> str:
    """``LoRA(rank=8) on timm:resnet18``."""
    return f"{config['call']} on {config['base']['architecture']}"


def _data(notes: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the data; older adapters have one text."""
    data = notes.get("data")
    if not isinstance(data, Mapping):
        return {"name": data} if data else {}
    return {
        key: value
        for key, value in data.items()
        if key in ("name", "fingerprint") or (key in ("train", "report") and isinstance(value, int))
    }


def _rows(notes: Mapping[str, Any], key: str, fields: Mapping[str, type]) -> list[dict[str, Any]]:
    """A list among the notes, if each of its rows has these fields; notes are free, and others are shown as they are."""
    rows = notes.get(key)
    if not isinstance(rows, list | tuple):
        return []
    for row in rows:
        if not isinstance(row, Mapping):
            return []
        for field, kind in fields.items():
            if not isinstance(row.get(field), int | float if kind is float else kind):
                return []
    return [dict(row) for row in rows]


def _is_shown(notes: Mapping[str, Any], key: str) -> bool:
    """Whether a part of the card shows this note."""
    known = {"results": _RESULT, "areas": _AREA, "findings": _FINDING}
    if key in known:
        return not notes[key] or bool(_rows(notes, key, known[key]))
    return key in _TEXTS or key == "data"


def _hub_id(base: Mapping[str, Any]) -> str | None:
    """The repository on the hub that the base weights come from, where that is known."""
    if not base.get("published"):
        return None
    kind, _, name = str(base.get("source") or "").partition(":")
    if kind == "hf":
        return name if _HUB_ID.fullmatch(name) and not Path(name).exists() else None
    if kind == "timm":
        from timm.models import get_pretrained_cfg

        pretrained = get_pretrained_cfg(name, allow_unregistered=True)
        return getattr(pretrained, "hf_hub_id", None)
    return None


def _line(value: object) -> str:
    """On one line: nothing in it can end the head of the card, or begin a heading."""
    return " ".join(str(value).split())


def _text(value: object) -> str:
    """Prose that shows ``value`` as it is: no HTML, no markdown."""
    return re.sub(r"([\\`*_\[\]|~#!])", r"\\\1", escape(_line(value), quote=False))


def _code(value: object) -> str:
    """``value`` between more backticks than it holds."""
    text = _line(value)
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"
