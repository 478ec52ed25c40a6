"""The one training loop: every strategy, objective and schedule is an argument to it.

Under ``torchrun --nproc-per-node N`` or ``accelerate launch --multi_gpu`` each process takes its share of every batch and
of every evaluation, and they send each other the gradients of what trains, once a step. (``accelerate launch --cpu`` alone
starts one process, whatever ``--num_processes`` says; the log tells how many there are.) With ``accelerate launch
--use_fsdp --fsdp_version 2`` they divide what trains too, see :mod:`paretune.training.sharding`. Where batch norms adapt,
each normalises its own share, and what they have seen becomes their mean before each evaluation: the running means are
those of whole batches then, the running variances lack the spread between the shares. A comment says where an accelerator
is waited for; why nowhere else, :mod:`paretune.training.measuring`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from paretune.attacks import Attack
from paretune.attacks.copy.options import Engine
from paretune.attacks.copy.precision import Precision
from paretune.backbones.backbone import Backbone, note_task
from paretune.backbones.checkpointing import checkpointed
from paretune.data.augmentation import Augmentation
from paretune.data.images import ImageData, as_data
from paretune.runs.progress import Status, progress_bar
from paretune.runs.sinks.base import Openable
from paretune.runs.store import Run
from paretune.shifts import Shift
from paretune.strategies.mechanics.adapting import trainable_parameters
from paretune.training.balance import Balance
from paretune.training.confirming import confirm_points
from paretune.training.ema import Average
from paretune.training.freezing import Freezing, Frozen
from paretune.training.gradients import gradients
from paretune.training.guards import check_gradients, far_statistics
from paretune.training.keeping import Rule
from paretune.training.measuring import Readings, at_work, look, measure
from paretune.training.memory import evaluated, shortage
from paretune.training.objectives import Objective
from paretune.training.optimizers import AdamW
from paretune.training.plan import Batches, Mixed, Plan
from paretune.training.processes import Processes
from paretune.training.record import Record, recording
from paretune.training.schedules import EpsilonSchedule
from paretune.training.sharding import give, take, whole
from paretune.training.tasks import Tasks

# Of train's arguments; the others make the run what it is.
_NOT_PLANNED = {"out", "workers", "resume", "progress", "sinks"}


def train(
    model: Backbone,
    data: ImageData | Any,
    objective: Objective,
    *,
    out: str | Path,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int = 32,
    accumulate: int = 1,
    divide: int = 1,
    checkpointing: bool = False,
    mixed_precision: Mixed | None = None,
    ema: float | None = None,
    awp: float | None = None,
    keep: Rule = "last",
    patience: int | None = None,
    optimizer: AdamW | None = None,
    epsilon: EpsilonSchedule | None = None,
    freezing: Freezing | None = None,
    attacks: Sequence[Attack] | None = None,
    shifts: Sequence[Shift] = (),
    shift_limit: int | None = 500,
    attack_elsewhere: bool = False,
    eval_every: int | None = None,
    points: int | None = None,
    balance: Balance = "none",
    seed: int = 0,
    augmentation: str | Augmentation | Callable[[Tensor], Tensor] | None = None,
    stop_on_failure: bool = False,
    reuse: bool = False,
    confirm: Attack | None = None,
    workers: int = 0,
    precision: Literal["auto"] | Precision = "fp32",
    engine: Engine = "auto",
    resume: bool = True,
    progress: bool | Callable[[Status], None] = True,
    sinks: Sequence[Openable] = (),
) -> Run:
    """Train the adapted ``model`` in place and write a run directory.

    At each evaluation point the model is measured on the select and the report split, one row per attack is appended, and a
    checkpoint replaces the last one. Killed and called again with the same arguments, the run goes on from there and ends
    with the same adapter and the same rows (on one kind of machine with the same number of threads and processes; with more
    or fewer processes up to rounding, but for dropout and batch norms that adapt).

    Args:
        model: from :func:`~paretune.adapt`.
        data: train is learnt, the rest is measured. ``load_data`` splits what else it takes, at ``model``'s size.
        objective: of :mod:`paretune.training`, such as ``AdversarialTraining(PGD(Linf(4/255), steps=7))``.
        out: the run directory.
        epochs: passes over the train split; give this or ``steps``.
        steps: optimizer steps.
        batch_size: images a step, over all processes. A last batch that is not full is left out.
        accumulate: parts in which each process learns its share of a batch, for less memory. The gradient is that of the
            whole batch; batch norms that adapt see one part at a time.
        divide: how many times more parts there are, of evaluation too, for lack of memory. It does not belong to what makes
            the run what it is, so that a run that met the end of memory can go on; a finding says so.
        checkpointing: compute activations again in the backward pass instead of keeping them, for less memory.
        mixed_precision: of the passes that train: ``"bf16"``, ``"fp16"`` (with scaled gradients, on CUDA) or ``"no"``; None
            takes what ``accelerate launch`` was told. Weights, attacks and measurements stay in float32.
        ema: measure and save an average of the weights with this decay, see
            :class:`~paretune.training.ema.Average`.
        awp: take each step with the gradient at adversarially perturbed weights, this far away, see
            :func:`~paretune.training.perturbing.worst_weights`.
        keep: which point the run ends with, see :class:`~paretune.training.keeping.Keep`: ``"last"``, or the best on the
            select split by ``"clean"``, ``"robust"``, ``"harmonic"`` (mean of both) or ``"area"`` (that it dominates).
        patience: stop after so many points without a better one.
        optimizer: defaults to ``AdamW()`` with the strategy's own learning rate.
        epsilon: strength of the training attack over time; defaults to the two-hinge schedule (0.25, 0.75).
        freezing: what trains when, such as ``LPFT()``; everything from the first step by default.
        attacks: what to evaluate with; defaults to the objective's threat and PGD with 20 steps.
        shifts: measure what these make of the report split too, see :mod:`paretune.shifts`; of each at most the first
            ``shift_limit`` images, all of them when None. It is elsewhere in the rows, and chooses nothing.
        attack_elsewhere: run attacks on it, and on what is elsewhere in ``data``; else only its clean accuracy is measured.
        eval_every: steps between evaluation points; an epoch when None. The last step is always one.
        points: how many evaluation points instead, spread evenly over the steps; at most one a step.
        balance: what is done about classes of different sizes: ``"weights"`` gives each example a weight in the loss, which
            is the same for all classes in total and 1 on average; ``"sampling"`` draws each class equally often.
        seed: seeds batches, augmentation and attacks. Seed the backbone's head and the strategy when making them.
        augmentation: of training images, see :mod:`paretune.data.augmenting`; defaults to ``data.augmentation``.
        stop_on_failure: end the run where transfer failure, catastrophic overfitting, masked gradients or an adapter that
            does not move is noticed. It is measured there and finished as it is; a finding, the last rows and the adapter
            say why. A comparison takes no more points of any run than the shortest run has.
        reuse: try first what broke the model at the evaluation point before, see :mod:`paretune.evaluation.reuse`.
        confirm: a stricter attack on the points that are chosen, at the end, see :mod:`paretune.training.confirming`.
        workers: processes that load images; 0 loads them here.
        precision: of the gradients of attacks, see :func:`~paretune.attacks.attack_copy`; resuming keeps what "auto" chose.
        engine: what takes the steps of attacks, see :func:`~paretune.attacks.attack_copy`. All but ``"compiled"`` give the
            same numbers, so only that belongs to the arguments of a run.
        resume: go on with the run in ``out``; False starts it over, also one with damaged files.
        progress: show a bar on the terminal, or call this with a :class:`~paretune.runs.progress.Status` after each step.
        sinks: who else receives the rows, see :mod:`paretune.runs.sinks`. One that fails changes nothing else.

    Returns:
        The run, as :func:`~paretune.runs.store.load_runs` reads it.

    Raises:
        ValueError: an argument is out of range, the model was trained for other classes than those of ``data``, ``out``
            holds another run or a damaged one, or a trainable parameter got no gradient.
        OSError: another process is at work in ``out``, or a file cannot be written; the same call goes on once that ends.
        TrainingDiverged: the loss became NaN; the last checkpoint is kept.
    """
    data = data if isinstance(data, Tasks) else as_data(data, model.image_size)
    arguments = locals()
    plan = Plan.of(**{name: arguments[name] for name in arguments if name not in _NOT_PLANNED})
    processes = Processes(plan.mixed_precision, evaluated=evaluated(plan.divide))
    processes.check(plan)
    with recording(Path(out), plan, processes, resume=resume, sinks=sinks) as record:
        note_task(model, plan.noted)
        if record.done:
            return record.restore(model)
        with checkpointed(model, plan.checkpointing):
            _follow(plan, model, processes, record, workers, progress)
        return record.finish(model)


def _follow(
    plan: Plan,
    model: Backbone,
    processes: Processes,
    record: Record,
    workers: int,
    progress: bool | Callable[[Status], None],
) -> None:
    """Take the steps of ``plan`` that ``record`` lacks."""
    rank, device, precision = processes.rank, processes.device, processes.precision
    model.to(device).to(memory_format=torch.channels_last)  # the same values; faster convolutions on a CPU
    learner = processes.learner(model)
    parameters, learnt = (list(trainable_parameters(which).values()) for which in (model, learner))
    tasks, optim = at_work(plan, model, learner), plan.optimizer.build(learner, plan.lr)
    average = Average(model, plan.ema)
    kept = {name: part for task in tasks for name, part in task.kept.items()}
    record.go_on(model, optim, {**kept, "average": average, "scale": precision})
    give(model, learner)
    for task in tasks:
        task.copy.options = replace(plan.options, precision=record.so_far["attack_precision"])
    record.note(shortage(model, plan.accumulate, plan.parts, plan.divide, record.step), record.step)
    frozen = Frozen(learner, plan.freezing, plan.total)
    readings, start = Readings(record, device, parameters), record.step
    order = partial(Batches, plan, start, rank, processes.world)
    loaders = [order(number=task.plan.number).loader(workers, device) for task in tasks]
    bar = progress_bar(progress if rank == 0 else False, record.path.name, plan.total)
    with torch.random.fork_rng(), bar as show, record.writing():
        for task in tasks:
            task.called.train()
        for step, loaded in enumerate(zip(*loaders, strict=True), start=start + 1):
            if record.stop:
                break
            strength, lr, seed = plan.at(step, record.clean)
            for group in optim.param_groups:
                group["lr"] = lr * group["factor"]
            drawn = zip(tasks, loaded, strict=True)
            batches = [task.batch(device, tensors, step, strength) for task, tensors in drawn]
            if step == 1:
                images = torch.cat([batch.images for batch in batches])
                record.note(far_statistics(model, images), step)  # waits, once a run
            frozen.begin(step)
            torch.manual_seed(seed + rank)  # dropout and stochastic depth
            with readings.checking(step, batches[0]):
                seen = gradients(
                    [part for batch in batches for part in batch.parts(plan.parts)],
                    tasks,
                    learner,
                    precision,
                    awp=plan.awp,
                    attacking=readings.attacking(),
                    share=partial(processes.average_gradients, learnt),
                    drop=frozen.drop_gradients,
                )
            if step == start + 1:
                reached = plan.objective.reaches_all
                unused = check_gradients(model, batches[0].images, learner=learner, penalised=reached)
                record.note(unused if step == 1 else None, step)
            frozen.drop_gradients()
            precision.scaler.unscale_(optim)
            norm = torch.nn.utils.clip_grad_norm_(learnt, plan.optimizer.clip or float("inf"))
            readings.add(step, seen, whole(norm))
            settled = readings.read(step)  # waits, once in WAIT_EVERY steps
            precision.scaler.step(optim)
            precision.scaler.update()
            optim.zero_grad(set_to_none=True)
            take(model, learner)
            average.update(step)
            for task in tasks:
                task.copy.outdated = True
            look(step, strength, record, model, tasks, parameters)  # waits, if somebody asks
            if step in plan.measured_at or record.stop:  # waits
                settled[-1] = measure(settled[-1], readings, model, optim, tasks, average)
            for status in settled:
                show(status)
    average.swap()
    confirm_points(record, model, tasks)
    model.eval().to(memory_format=torch.contiguous_format)
