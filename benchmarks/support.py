"""Which strategy works on which architecture: runs the contract on each pair, and writes ``docs/support.md``.

Each architecture is the smallest of its family with random weights, on small images (``tests/contracts/backbones.py``).
A pair works if every promise of the contract holds (``tests/contracts/contract.py``), and is refused if paretune raises an
error that says why. Anything else is broken, and this script ends with an error.

    python benchmarks/support.py [--architectures NAME,...] [--strategies NAME,...]
"""

import argparse
import csv
import re
import sys
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import torch  # noqa: E402
from tests.contracts.backbones import EVERY, HUGGING_FACE, OTHERS, TIMM, make  # noqa: E402
from tests.contracts.contract import outcome  # noqa: E402
from tests.contracts.strategies import MATRIX, TABLE, made_for, read_rows  # noqa: E402

import paretune as pt  # noqa: E402
from _record import machine  # noqa: E402
from paretune.strategies import Strategy, trainable_parameters  # noqa: E402

PAGE = HERE.parent / "docs" / "support.md"
COLUMNS = (
    "architecture",
    "strategy",
    "outcome",
    "trained",
    "reason",
    "paretune",
    "torch",
    "timm",
    "transformers",
    "peft",
    "date",
)


def main() -> None:
    """Measure, and write the rows and the page."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--strategies", type=among(MATRIX), default=[*MATRIX], help="names from tests/contracts/strategies.py"
    )
    options.add_argument(
        "--architectures", type=among(EVERY), default=EVERY, help="names from tests/contracts/backbones.py"
    )
    options.add_argument(
        "--page", action="store_true", help="only write the page from the rows that there are"
    )
    chosen = options.parse_args()
    torch.set_num_threads(1)  # as the tests
    about = machine("transformers", "peft")
    for architecture in () if chosen.page else chosen.architectures:
        base = make(architecture)
        for name in chosen.strategies:
            row = measure(architecture, base, name)
            print(f"{architecture:32} {name:18} {row['outcome']} {row['reason']}", flush=True)
            rows = read_rows()  # anew, because another run may measure other pairs
            rows[architecture, name] = row | {key: str(about[key]) for key in COLUMNS[5:]}
            write_rows(rows)
    rows = read_rows()
    PAGE.write_text(page(rows), encoding="utf-8")
    broken = [key for key, row in rows.items() if row["outcome"] == "broken"]
    if broken:
        sys.exit(f"broken: {broken}")


def among(known: Collection[str]) -> Callable[[str], list[str]]:
    """A reader of some of the ``known`` names, separated by commas; case does not matter."""
    names = {name.lower(): name for name in known}

    def read(text: str) -> list[str]:
        unknown = [name for name in text.split(",") if name.lower() not in names]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of: {', '.join(known)}")
        return [names[name.lower()] for name in text.split(",")]

    return read


def measure(architecture: str, base: pt.Backbone, name: str) -> dict[str, str]:
    """One row: whether the contract holds, and the number of trained parameters without the head; or why it is refused."""
    row = {"architecture": architecture, "strategy": name, "trained": ""}
    with tempfile.TemporaryDirectory() as directory:
        try:
            strategy = made_for(name, base)
            row["outcome"], row["reason"] = outcome(base, strategy, Path(directory) / "adapter")
        except Exception as error:
            row["outcome"], row["reason"] = "broken", f"{type(error).__name__}: {error}".split("\n")[0]
    if row["outcome"] == "works":
        row["trained"] = str(count(architecture, strategy))
    return row


def count(architecture: str, strategy: Strategy) -> int:
    """Trained parameters outside the head."""
    model = pt.adapt(make(architecture), strategy)
    return sum(parameter.numel() for parameter in trainable_parameters(model, head=False).values())


def write_rows(rows: dict[tuple[str, str], dict[str, str]]) -> None:
    """In the order of the architectures and strategies; pairs that are no longer among them are dropped."""
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[a, s] for a in EVERY for s in MATRIX if (a, s) in rows)


def page(rows: dict[tuple[str, str], dict[str, str]]) -> str:
    """The table of the strategies that have rows, with a note for each reason."""
    notes: dict[str, int] = {}
    measured = {strategy for _, strategy in rows}
    columns = [name for name in MATRIX if name in measured]
    unmeasured = [name for name in MATRIX if name not in measured]

    def cell(architecture: str, strategy: str) -> str:
        row = rows.get((architecture, strategy))
        if row is None:
            return "?"
        if row["outcome"] != "refused":
            return "✓" if row["outcome"] == "works" else "✗"
        reason = general(row["reason"])
        return f"[{notes.setdefault(reason, len(notes) + 1)}](#reasons)"

    lines = [
        "# What works where",
        "",
        "Written by `python benchmarks/support.py` from `benchmarks/support.csv`; do not edit by hand.",
        "",
        "✓: the contract of the strategy holds on this architecture. The logits are those of the base at the",
        "start (but with prompt tokens), exactly the declared parameters train and each of them gets a",
        "gradient, the gradient for the image is right, a deep copy and the attack copy compute the same, a",
        "saved adapter gives the same logits when loaded, merging keeps them, and removal gives the base back",
        "bit for bit. A number: paretune refuses, with an error that says the reason below. Each architecture",
        "is the smallest of its family, with random weights and small images: nothing here is about accuracy.",
        "",
    ]
    if unmeasured:
        lines += [f"Not measured: {', '.join(unmeasured)}.", ""]
    if len(rows) < len(EVERY) * len(columns):
        lines += ["?: not measured.", ""]
    for title, names in (
        ("timm", TIMM),
        ("transformers", HUGGING_FACE),
        ("torchvision (tv_), and the vision tower of CLIP", OTHERS),
    ):
        lines += [f"## {title}", "", "| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for name in names:
            lines.append(
                f"| {name.removeprefix('hf_')} | " + " | ".join(cell(name, s) for s in columns) + " |"
            )
        lines.append("")
    lines += ["## Reasons", ""]
    lines += [f"{number}. {reason}" for reason, number in notes.items()]
    works = sum(row["outcome"] == "works" for row in rows.values())
    versions = sorted(
        {
            f"timm {row['timm']}, transformers {row['transformers']}, peft {row['peft']}, torch {row['torch']}"
            for row in rows.values()
        }
    )
    lines += ["", f"{works} of {len(rows)} pairs work. Measured with {'; '.join(versions)}.", ""]
    lines += ["## The strategies", ""]
    lines += [
        f"- {name}: `{made_for(name, make('resnet18'))!r}`" for name in columns if not callable(MATRIX[name])
    ]
    lines += [
        "- Peft LoHa: `Peft({'peft_type': 'LOHA', 'r': 2, 'target_modules': ...})` on every Linear and Conv2d but the head",
        "",
    ]
    return "\n".join(lines)


def general(reason: str) -> str:
    """The reason without the names of one model's class and layers, so that models share a note."""
    reason = re.sub(
        r"(in|of|is known in|have no effect in|fail in|change the logits of|refuses) [A-Z]\w+",
        r"\1 the model",
        reason,
    )
    reason = re.sub(r"in front of '[^']*'", "in front of a branch", reason)
    reason = re.sub(r"LNLoRA: [A-Z]\w+ reads", "LNLoRA: the model reads", reason)
    reason = re.sub(r"and [A-Z]\w+ has none", "and the model has none", reason)
    reason = re.sub(r"which [A-Z]\w+ is not known", "which the model is not known", reason)
    reason = re.sub(r"(effect in the model): .*", r"\1", reason)
    reason = re.sub(r" \((?:The size of tensor|mat1).*", "", reason)
    reason = re.sub(r"outside the head '[^']*'", "outside the head", reason)
    return re.sub(
        r"^BitFit: [A-Z]\w+ has|^NormTune: [A-Z]\w+ has",
        lambda m: m[0].split(":")[0] + ": the model has",
        reason,
    )


if __name__ == "__main__":
    main()
