"""What a stricter attack says of the checkpoints that a run chose.

    RUN/confirmed/step-000040.safetensors   which report examples that checkpoint gets right, clean and under the attack

A row of ``points.jsonl`` is of both splits, by one attack, like every other point of the run. These are of the report split
and of few points, so they are no rows: no area mixes them with the others.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from paretune.runs import disk
from paretune.runs.rows import OTHERWISE, load_packed, pack, read_json

CONFIRMED = "confirmed"


@dataclass(frozen=True, eq=False)
class Confirmed:
    """A checkpoint on the report split, under a stricter attack.

    Args:
        step: of the checkpoint.
        attack: the call of the attack as it ran.
        threat: name of its norm.
        epsilon: its radius, as a fraction of the pixel range.
        report_id: fingerprint of the report split, as the rows have it.
        right_clean: (examples,) booleans.
        right_robust: (examples,) booleans, right on the clean and on the attacked image.
    """

    step: int
    attack: str
    threat: str
    epsilon: float
    report_id: str
    right_clean: NDArray[np.bool_]
    right_robust: NDArray[np.bool_]

    @property
    def clean(self) -> float:
        """Accuracy on the clean images."""
        return float(self.right_clean.mean())

    @property
    def robust(self) -> float:
        """Accuracy under the attack."""
        return float(self.right_robust.mean())

    def write(self, directory: Path) -> None:
        """Put it into the run ``directory``."""
        bits = {"clean": np.packbits(self.right_clean), "robust": np.packbits(self.right_robust)}
        told = {name: getattr(self, name) for name in ("attack", "threat", "epsilon", "report_id")}
        content = pack(bits, {"told": json.dumps(told | {"examples": len(self.right_clean)}, sort_keys=True)})
        disk.write_atomically(confirmed_file(directory, self.step), lambda path: path.write_bytes(content))

    @classmethod
    def read(cls, file: Path) -> "Confirmed":
        """What :meth:`write` has put there.

        Raises:
            FileNotFoundError: nothing.
            ValueError: the file is damaged.
        """
        packed, notes = load_packed(file)
        try:
            told: dict[str, Any] = json.loads(notes["told"])
            count = told.pop("examples")
            bits = [np.unpackbits(packed[name], count=count).astype(bool) for name in ("clean", "robust")]
            if any(len(right) != count for right in bits) or (bits[1] & ~bits[0]).any():
                raise ValueError("its bits are not those of so many examples")
            return cls(int(file.stem.partition("-")[2]), **told, right_clean=bits[0], right_robust=bits[1])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is damaged ({error}); {OTHERWISE}") from None


def confirmed_file(directory: Path, step: int) -> Path:
    """Where the confirmation of a step is."""
    return directory / CONFIRMED / f"step-{step:06d}.safetensors"


def read_confirmed(directory: Path, rows: pd.DataFrame) -> list[Confirmed]:
    """The confirmations of a run, by rising step; none of one that confirms nothing, or has not come to it.

    Args:
        directory: of the run.
        rows: its points, one a row.

    Raises:
        FileNotFoundError, ValueError: one that the finished run had is gone, is damaged, or is about other examples.
    """
    files = sorted((directory / CONFIRMED).glob("step-*.safetensors"))
    stated = read_json(directory / "DONE").get("confirmed", ()) if (directory / "DONE").exists() else ()
    if missing := {confirmed_file(directory, step) for step in stated}.difference(files):
        raise FileNotFoundError(f"{min(missing)} is missing; {OTHERWISE}")
    report_of = dict(zip(rows["step"], rows["report_id"], strict=True))
    confirmed = [Confirmed.read(file) for file in files]
    for of_step in confirmed:
        if report_of.get(of_step.step) != of_step.report_id:
            raise ValueError(
                f"{confirmed_file(directory, of_step.step)} is about other examples than the rows; {OTHERWISE}"
            )
    return confirmed
