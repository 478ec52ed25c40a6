"""What is right at the end of a run at several radii, of which expected robustness is the mean over epsilon."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

import paretune as pt
from paretune._values import parse_number
from paretune.runs.store import Run
from paretune.sweeps.config import RunConfig
from paretune.training.tasks import Tasks

Packed = Mapping[str, str]  # eight examples of the report split in two hexadecimal digits, by the radius


def measure(config: RunConfig, run: Run, radii: Sequence[str]) -> Packed:
    """Attack the last model of ``run`` by PGD with the steps of its evaluation, at each of ``radii``."""
    data = config.load_data()
    assert not isinstance(data, Tasks)
    model = config.load_backbone(len(data.classes), config.seed)
    pt.load_adapter(model, run.path / "adapter")
    attacks = [pt.PGD(pt.Linf(_number(radius)), steps=config.eval_steps) for radius in radii]
    scores = pt.evaluate(model, data.report, attacks)
    right = {
        "0": scores.clean,
        **{r: scores.robust[attack] for r, attack in zip(radii, attacks, strict=True)},
    }
    return {radius: np.packbits(bits).tobytes().hex() for radius, bits in right.items()}


def unpack(packed: Packed, examples: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The radii, rising from 0, and which examples are right there, shape ``(examples, radii)``."""
    radii = np.array([_number(radius) for radius in packed])
    columns = [np.frombuffer(bytes.fromhex(digits), np.uint8) for digits in packed.values()]
    return radii, np.stack([np.unpackbits(column, count=examples) for column in columns], axis=-1).astype(
        bool
    )


def _number(radius: str) -> float:
    return parse_number("radius", radius)
