"""The points of a run that a stricter attack will confirm, and the weights that they are kept with until then."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from torch import Tensor

from paretune._values import parse, told
from paretune.attacks import ATTACKS, THREATS, Attack, AutoAttack
from paretune.frontiers.pareto import frontier_mask
from paretune.runs import disk
from paretune.runs.confirmed import CONFIRMED
from paretune.runs.store import load_runs
from paretune.training.checkpoints import save_tensors

WEIGHTS = "weights"  # in the directory of an unfinished run: the points that may be confirmed


def check_confirm(confirm: Attack, attacks: Sequence[Attack]) -> None:
    """Raise if what the ``attacks`` measure cannot be confirmed by ``confirm``.

    Raises:
        TypeError: it is no attack.
        ValueError: it has another threat than all of them, or leaves its ball.
    """
    if not isinstance(confirm, Attack):
        raise TypeError(f"confirm must be an attack such as AutoAttack(Linf(4/255)), got {confirm!r}")
    if not confirm.in_ball:
        raise ValueError(f"confirm={confirm!r} leaves its ball by design; take AutoAttack or APGD")
    if confirm.threat not in [attack.threat for attack in attacks]:
        threats = ", ".join(dict.fromkeys(repr(attack.threat) for attack in attacks))
        raise ValueError(
            f"confirm={confirm!r} has another threat than the points are measured under: {threats}"
        )


def read_confirm(text: str, attack: Attack) -> Attack:
    """From a call such as ``"APGD(Linf(4/255), steps=50)"``, or from ``"auto"``, which is AutoAttack.

    Args:
        text: the call.
        attack: what the points are measured with.

    Raises:
        ValueError: it names no attack with that threat.
    """
    if text == "auto":
        return AutoAttack(attack.threat)
    with told("confirm", text):
        confirm: Attack = parse(text, {**ATTACKS, **THREATS})
        check_confirm(confirm, [attack])
    return confirm


def keep_weights(path: Path, step: int, tensors: Mapping[str, Tensor]) -> None:
    """Keep what the point of ``step`` was measured with."""
    save_tensors(weights_file(path, step), tensors)


def chosen_steps(places: Sequence[Path], confirm: Attack) -> list[set[int]]:
    """The steps to confirm of the run in each of ``places``: its frontiers so far, and its last point."""
    chosen = []
    for place in places:
        points = load_runs(place)[0].points
        of_threat = (points["threat"] == type(confirm.threat).__name__) & (
            points["epsilon"] == confirm.threat.epsilon
        )
        steps = {int(points["step"].max())}
        for _, rows in points[of_threat].groupby("attack"):
            on_front = frontier_mask(rows["clean_select"], rows["robust_select"])
            steps |= {*map(int, rows["step"][pd.Series(on_front, index=rows.index)])}
        chosen.append(steps)
    return chosen


def drop_weights(path: Path, kept: set[int]) -> None:
    """Forget the weights of all steps but these."""
    for file in (path / WEIGHTS).glob("step-*.safetensors"):
        if file not in {weights_file(path, step) for step in kept}:
            file.unlink()


def forget_later(path: Path, places: Sequence[Path], step: int) -> None:
    """Forget what was kept and confirmed of points after ``step``, which a resumed run makes again."""
    for folder in (path / WEIGHTS, *(place / CONFIRMED for place in places)):
        disk.remove_leftovers(folder)
        for file in folder.glob("step-*.safetensors"):
            if int(file.stem.partition("-")[2]) > step:
                file.unlink()


def weights_file(path: Path, step: int) -> Path:
    """Where the weights of a point are."""
    return path / WEIGHTS / f"step-{step:06d}.safetensors"
