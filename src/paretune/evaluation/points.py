"""An evaluation point as a run keeps it: one row an attack, and the bits that they are about."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune.evaluation.scores import Scores


def point(
    report: Scores, select: Scores, elsewhere: Mapping[str, Scores], common: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, NDArray[np.bool_]]]:
    """What :meth:`~paretune.runs.store.RunWriter.append` takes.

    Args:
        report: of the report split.
        select: of the select split, under the same attacks.
        elsewhere: of other examples by their name, under the same attacks or none.
        common: what else each row says, such as its step.
    """
    bits = {"report/clean": report.clean, "select/clean": select.clean}
    bits |= {f"elsewhere/{name}/clean": scores.clean for name, scores in elsewhere.items()}
    rows = []
    for number, attack in enumerate(report.robust):
        key = f"robust-{number}"
        bits |= {f"report/{key}": report.robust[attack], f"select/{key}": select.robust[attack]}
        measured: dict[str, Any] = {
            "attack": report.ran(attack),
            "threat": type(attack.threat).__name__,
            "epsilon": attack.threat.epsilon,
            "clean": report.clean_accuracy,
            "robust": report.robust_accuracy(attack),
            "clean_select": select.clean_accuracy,
            "robust_select": select.robust_accuracy(attack),
            "examples": len(report.clean),
            "examples_select": len(select.clean),
            "report_id": report.split,
            "select_id": select.split,
            "bits_key": key,
        }
        for name, scores in elsewhere.items():
            place = {"examples": len(scores.clean), "id": scores.split, "clean": scores.clean_accuracy}
            if scores.shift is not None:
                place |= {"shift": scores.shift, "paired": scores.paired}
            if attack in scores.robust:
                place["robust"] = scores.robust_accuracy(attack)
                bits[f"elsewhere/{name}/{key}"] = scores.robust[attack]
            measured.setdefault("elsewhere", {})[name] = place
        rows.append({**common, **measured})
    return rows, bits
