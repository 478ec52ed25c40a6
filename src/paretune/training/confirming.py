"""The points that a run chose, measured once more by a stricter attack.

Every evaluation point is measured by the attacks of the run, on the select and the report split. Points on the frontier of
the select split, under those attacks that have the threat of the stricter one, and the last point keep their weights until
the run ends. Then they are measured on the report split by the stricter attack, which so needs no look at all other points.
"""

import shutil
from collections.abc import Sequence

from paretune.backbones.backbone import Backbone
from paretune.interchange.placing import stored_tensors_full_names
from paretune.runs.confirmed import Confirmed, confirmed_file
from paretune.strategies.mechanics.adapting import require_adaptation, restore
from paretune.training.checkpoints import load_tensors
from paretune.training.chosen import WEIGHTS, chosen_steps, weights_file
from paretune.training.measuring import AtWork
from paretune.training.record import Record

_STATE = "confirming"  # in the directory of an unfinished run: what the attack has finished of a point


def confirm_points(record: Record, model: Backbone, tasks: Sequence[AtWork]) -> None:
    """Measure what ``chosen_steps`` names and is not measured yet; ``model`` ends with its last point.

    All processes do their share. One that is killed goes on with the next call, also within an attack that can.
    """
    attack, processes = record.plan.confirm, record.processes
    if attack is None:
        return
    wait = processes.accelerator.wait_for_everyone
    wait()  # for the main process, which may be writing rows and weights
    chosen = chosen_steps(record.paths, attack)
    left = [
        {step for step in steps if not confirmed_file(place, step).exists()}
        for place, steps in zip(record.paths, chosen, strict=True)
    ]
    wait()  # before the main process writes the first of them
    steps = set.union(*left)
    for step in sorted(steps | {record.step} if steps else steps):
        stored = stored_tensors_full_names(model.module, require_adaptation(model))
        restore(model.module, load_tensors(weights_file(record.path, step), stored))
        for number, (task, place) in enumerate(zip(tasks, record.paths, strict=True)):
            if step not in left[number]:
                continue
            state = place / _STATE / str(step)
            report = task.plan.data.report
            scores = processes.evaluate(task.model, report, [attack], record.plan.seed, state=state)
            if record.writers:
                Confirmed(
                    step,
                    scores.ran(attack),
                    type(attack.threat).__name__,
                    attack.threat.epsilon,
                    scores.split,
                    scores.clean,
                    scores.robust[attack],
                ).write(place)
    wait()  # for all who read, before it goes
    if record.writers:
        for gone in (record.path / WEIGHTS, *(place / _STATE for place in record.paths)):
            shutil.rmtree(gone, ignore_errors=True)
