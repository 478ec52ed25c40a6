"""Why something is slow, in one line with the remedy, from seconds that were measured."""

import logging
from collections.abc import Mapping

from paretune.attacks import Attack, AutoAttack
from paretune.backbones.backbone import Backbone
from paretune.data.sizes import pair

log = logging.getLogger(__name__)  # which the command line shows

SLOW = 60.0  # seconds of all of it, below which nobody asks


def slow_evaluation(seconds: Mapping[Attack, float], model: Backbone) -> str | None:
    """What makes an evaluation slow; None where it is not, or nothing stands out.

    Args:
        seconds: that each attack took, see :class:`~paretune.evaluation.correctness.Scores`.
        model: that was measured.
    """
    total = sum(seconds.values())
    if total < SLOW:
        return None
    slowest = max(seconds, key=seconds.__getitem__)
    ensemble = isinstance(slowest, AutoAttack)
    if seconds[slowest] <= total / 2 or (len(seconds) == 1 and not ensemble):
        return _images(model)
    share = f"{seconds[slowest] / total:.0%} of the time, {seconds[slowest]:.0f} s"
    remedy = "APGD alone takes a fraction of its passes" if ensemble else "fewer steps or restarts take less"
    return f"it is slow because {slowest!r} takes {share}; {remedy}, and so do fewer images (--limit)"


def slow_training(
    steps: float, evaluation: float, points: int, seconds: Mapping[Attack, float], model: Backbone
) -> str | None:
    """What makes a run slow; None where it is not, or nothing stands out.

    Args:
        steps: seconds that all steps of the run take.
        evaluation: seconds that an evaluation point takes.
        points: evaluation points of the run.
        seconds: of an evaluation on the report split, by attack.
        model: that is trained.
    """
    total = steps + evaluation * points
    if total < SLOW:
        return None
    if evaluation * points <= total / 2:
        return _images(model)
    share = f"{evaluation * points / total:.0%} of the time, {evaluation:.1f} s at each of {points} points"
    slowest = max(seconds, key=seconds.__getitem__)
    remedy = "fewer points (--points), attack steps (--eval-steps) or images (--limit) take less"
    if isinstance(slowest, AutoAttack):
        remedy = "measure with PGD meanwhile, and with AutoAttack at the end, by paretune evaluate --attacks"
    return f"it is slow because evaluation takes {share}; {remedy}"


def _images(model: Backbone) -> str | None:
    """That images are larger than those which the model was trained on."""
    usual_size = tuple((getattr(model.module, "pretrained_cfg", None) or {}).get("input_size") or ())[-2:]
    height, width = pair(model.image_size)
    if len(usual_size) < 2 or height * width <= usual_size[0] * usual_size[1]:
        return None
    times = f"{height * width / (usual_size[0] * usual_size[1]):.1f} times those of {usual_size[0]} x {usual_size[1]}"
    size = usual_size[0] if usual_size[0] == usual_size[1] else f"{usual_size[0]},{usual_size[1]}"
    return (
        f"it is slow because images have {height} x {width} pixels, {times} that the model was made for; train with "
        f"--img-size {size}"
    )
