"""What a run takes: steps and gradient evaluations follow from its configuration, seconds and memory from a step of it."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from paretune.backbones.checkpointing import checkpointed
from paretune.data.images import ImageData
from paretune.data.sizes import pair
from paretune.runs.progress import peak_memory_bytes
from paretune.shifts import shifted
from paretune.strategies import trainable_parameters
from paretune.sweeps.config import RunConfig
from paretune.training.gradients import gradients
from paretune.training.measuring import at_work
from paretune.training.memory import EVALUATED
from paretune.training.objectives import TrainingBatch
from paretune.training.plan import Plan, evaluations_of_image, measuring_steps
from paretune.training.precision import MixedPrecision
from paretune.training.schedules import Moment
from paretune.training.tasks import Tasks, batches

PIXELS = 1 << 19  # of a batch that is timed in passing: 10 images of 224x224, or all of a batch of small ones
_ENOUGH = 0.5  # seconds after which a timing is not repeated


@dataclass(frozen=True)
class Work:
    """What is left to do of a run. A gradient evaluation is a forward and a backward pass of one image.

    Args:
        steps: of the optimizer.
        attacked: how many of them attack their batch.
        batch_size: images of a step, of all tasks.
        training: gradient evaluations of these steps, those of their attacks included.
        evaluation: gradient evaluations at the evaluation points, if no image is solved before the last step of its attack;
            what is solved needs fewer. A forward pass of an image that is not attacked, elsewhere, counts as half of one.
    """

    steps: int
    attacked: int
    batch_size: int
    training: int
    evaluation: int

    @classmethod
    def of(cls, config: RunConfig, data: ImageData | Tasks, done: int = 0) -> "Work":
        """The work that ``config`` has after ``done`` steps, which a checkpoint holds."""
        total, per_epoch = config.steps(data), config.per_epoch(data)
        objective = config.minimised
        standing = [0.0] * (total // per_epoch)  # accuracies with which no schedule waits any longer
        moments = (
            Moment(step=n, total=total, per_epoch=per_epoch, seed=config.seed, clean=standing)
            for n in range(done + 1, total + 1)
        )
        strengths = (config.freezing.factor(config.schedule, moment) for moment in moments)
        attacked = sum(strength > 0 for strength in strengths) if objective.attack else 0
        measured_at, _ = measuring_steps(total, total, None, config.points)
        training = images = 0
        for dataset, size in (tasks := batches(data, config.batch_size).values()):
            classes = len(dataset.classes)
            training += size * evaluations_of_image(objective, classes, total - done, attacked, config.awp)
            gradients = config.attack.passes(classes) // 2
            others = shifted(dataset, config.shifts or (), config.shift_limit).elsewhere.values()
            # A forward pass is about half of a gradient evaluation, as weights get no gradient in it.
            elsewhere = sum(map(len, others)) * (gradients if config.attack_elsewhere else 0.5)
            images += (len(dataset.select) + len(dataset.report)) * gradients + round(elsewhere)
        return cls(
            steps=total - done,
            attacked=attacked,
            batch_size=sum(size for _, size in tasks),
            training=training,
            evaluation=sum(step > done for step in measured_at) * images,
        )


@dataclass(frozen=True)
class Cost:
    """What steps of one strategy took.

    Args:
        trainable_parameters: of the strategy and the head.
        parameters: of the whole model, what the strategy adds included.
        setup: seconds before the first step, and what the first step takes longer than others.
        clean: seconds an image of a step without attack.
        attacked: seconds an image of a step with the attack.
        evaluation: seconds a gradient evaluation of an evaluation point.
        peak_memory_bytes: largest memory of this process so far: on the GPU if there is one, else resident.
    """

    trainable_parameters: int
    parameters: int
    setup: float
    clean: float
    attacked: float
    evaluation: float
    peak_memory_bytes: int

    def seconds(self, work: Work) -> float:
        """About how long ``work`` takes; 0 where there is none."""
        if not work.steps:
            return 0.0
        images = (work.steps - work.attacked) * self.clean + work.attacked * self.attacked
        return self.setup + images * work.batch_size + work.evaluation * self.evaluation


def measured(config: RunConfig, data: ImageData | Tasks, pixels: float = math.inf) -> Cost:
    """The cost of ``config``, from a step of each kind on this device, with as many threads as torch has now.

    Nothing is written, and the random state of torch stays as it is.

    Args:
        config: of one run.
        data: what it trains on.
        pixels: about how many a batch may have at most; memory is that of whole batches only without this.
    """
    began, work = time.perf_counter(), Work.of(config, data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    timed = 0.0

    def seconds(run: Callable[[], int], warm: Callable[[], int] | None = None) -> float:
        """A unit of what ``run`` counts, after a call that does not count."""
        nonlocal timed
        (warm or run)()
        start, units = time.perf_counter(), 0
        while units == 0 or time.perf_counter() - start < _ENOUGH:
            units += run()
        took = time.perf_counter() - start
        timed += took
        return took / units

    with torch.random.fork_rng():
        model = config.adapted(data)
        model.to(device).to(memory_format=torch.channels_last)
        plan = Plan.of(model, data, **config.planned(data), epochs=None, eval_every=None)
        tasks = at_work(plan, model, model)
        largest = EVALUATED + max(task.plan.batch_size for task in tasks)
        most = int(max(2, min(pixels / math.prod(pair(model.image_size)), largest)))
        precision = MixedPrecision(device, plan.mixed_precision)
        trained = list(trainable_parameters(model).values())
        optimizer = plan.optimizer.build(model, plan.lr)
        for group in optimizer.param_groups:
            group["lr"] = 0.0

        def train(strength: float) -> int:
            parts: list[TrainingBatch] = []
            for task in tasks:
                size, examples = task.plan.batch_size, task.plan.data.train
                places = torch.arange(min(size, most, len(examples)))
                images, labels = task.plan.train[0, places.tolist()]
                batch = task.batch(device, (images, labels, examples.ids[places], places), 1, strength)
                # Of a smaller batch, parts of the size that those of a whole one have.
                parts += batch.parts(max(1, round(plan.accumulate * len(images) / size)))
                task.model.train()
            gradients(parts, tasks, model, precision, awp=plan.awp)
            precision.scaler.step(optimizer)
            precision.scaler.update()
            optimizer.zero_grad()
            for task in tasks:
                task.copy.outdated = True
            float(trained[0].detach().flatten()[0])  # waits
            return sum(len(part.labels) for part in parts)

        def evaluate(steps: int) -> int:
            task = tasks[0]  # whose images and network are those of all
            images, labels = (part.to(device) for part in task.plan.data.report[: min(EVALUATED, most)])
            with torch.no_grad():
                task.model.eval()(images)
            # All steps for all images: those of a model that has not learnt yet would leave at once.
            attack = dataclasses.replace(config.attack.for_training(), steps=steps)
            attack(task.copy(), images, labels).sum().item()  # waits
            return len(images) * steps

        with checkpointed(model, plan.checkpointing):
            clean = seconds(partial(train, 0.0)) if work.attacked < work.steps else 0.0
            attacked = seconds(partial(train, config.threat.epsilon)) if work.attacked else 0.0
        evaluation = seconds(partial(evaluate, config.eval_steps), partial(evaluate, 1))
    return Cost(
        trainable_parameters=sum(parameter.numel() for parameter in trained),
        parameters=sum(parameter.numel() for parameter in model.module.parameters()),
        setup=time.perf_counter() - began - timed,
        clean=clean,
        attacked=attacked,
        evaluation=evaluation,
        peak_memory_bytes=peak_memory_bytes(),
    )


def makespan(seconds: Sequence[float], workers: int) -> float:
    """How long ``workers`` take for runs of these ``seconds``, each worker taking the next run when it is free."""
    free = [0.0] * workers
    for duration in seconds:
        free[free.index(min(free))] += duration
    return max(free)
