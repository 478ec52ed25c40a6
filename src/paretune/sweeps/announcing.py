"""What a sweep is about to do, told before it begins: its data, and about how long it will take."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from paretune.attacks import attack_copy
from paretune.data.images import ImageData
from paretune.data.sizes import pair
from paretune.strategies import adapt
from paretune.sweeps.config import RunConfig
from paretune.training.objectives import TrainingBatch

_PIXELS = 1 << 19  # of a batch that is timed: 10 images of 224x224, or all of a batch of small ones


def data_line(data: ImageData) -> str:
    """Images of each split, their size, and the classes with the fewest and the most images of one."""
    splits = (data.train, data.select, data.report)
    counts = sum(torch.bincount(split.labels, minlength=len(data.classes)) for split in splits)
    assert isinstance(counts, torch.Tensor)
    least, most = int(counts.min()), int(counts.max())
    each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    names = ", ".join(data.classes[:5]) + (", …" if len(data.classes) > 5 else "")
    size = "x".join(map(str, pair(data.image_size)))
    train, select, report = (f"{len(split):,}" for split in splits)
    return (
        f"{data.name}: {int(counts.sum()):,} images at {size}: {train} to train on, {select} to select by, {report} to "
        f"report; {len(data.classes)} classes ({names}) of {each} images"
        + "".join(f"; {len(split):,} of {name} elsewhere" for name, split in data.elsewhere.items())
        + (f"; {data.skipped} that cannot be read are left out" if data.skipped else "")
    )


def time_line(configs: Sequence[RunConfig], data: ImageData, *, workers: int, threads: int) -> str:
    """About how many minutes the runs take, from one step of training and one batch of evaluation of the first.

    Evaluation is counted as if every image had to be attacked to the end, so that it often takes less.

    Args:
        configs: the runs that are left.
        data: what they train on.
        workers: processes that share them.
        threads: of each process.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng():
            seconds = _seconds(configs[0], data) * math.ceil(len(configs) / workers)
    finally:
        torch.set_num_threads(before)
    minutes = max(1, round(seconds / 60))
    hours = f" ({minutes / 60:.1f} hours)" if minutes >= 120 else ""
    runs = f"{len(configs)} run{'s' if len(configs) > 1 else ''} of {configs[0].steps(data):,} steps"
    at_once = f", {workers} at once" if workers > 1 else ""
    return f"{runs}{at_once}: about {minutes:,} minute{'s' if minutes > 1 else ''}{hours}"


def _seconds(config: RunConfig, data: ImageData) -> float:
    """About how long one run takes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = adapt(config.load_backbone(len(data.classes), config.seed), config.strategy, seed=config.seed)
    model.to(device).to(memory_format=torch.channels_last)
    copy = attack_copy(model, precision=config.precision, engine=config.engine)
    optimizer = config.optimizer.build(model, 1.0)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    term = config.objective.begin(model, data, config.seed)
    most = max(2, _PIXELS // math.prod(pair(data.image_size)))

    def train(strength: float) -> int:
        images, labels = data.train[: min(config.batch_size, most)]
        places = torch.arange(len(images))
        batch = TrainingBatch.on(
            device, images, labels, data.train.ids[places], places, epsilon=strength, seed=0
        )
        loss, _ = term.loss(model.train(), batch, term.attacked(lambda: copy, batch))
        torch.autograd.backward(loss)
        loss.item()  # waits
        optimizer.step()
        optimizer.zero_grad()
        copy.refresh()
        return len(images)

    def look() -> int:
        images = data.report[:most][0].to(device)
        with torch.no_grad():
            model.eval()(images).sum().item()  # waits
        return len(images)

    def evaluate() -> int:
        images, labels = (part.to(device) for part in data.report[:most])
        with torch.no_grad():
            model.eval()(images)
        config.attack.for_training()(copy, images, labels).sum().item()  # all steps for all images; waits
        return len(images)

    total, epsilon = config.steps(data), config.threat.epsilon
    attacked = sum(config.schedule.factor((step - 0.5) / total) > 0 for step in range(1, total + 1))
    attacked = attacked if config.objective.attack else 0
    steps = [(total - attacked, 0.0), (attacked, epsilon)]
    training = sum(count * _per_image(partial(train, strength)) for count, strength in steps if count)
    measured = config.points * (len(data.select) + len(data.report))
    seconds = training * config.batch_size + measured * _per_image(evaluate)
    if elsewhere := config.points * sum(map(len, data.elsewhere.values())):
        seconds += elsewhere * _per_image(evaluate if config.attack_elsewhere else look)
    return seconds


def _per_image(run: Callable[[], int]) -> float:
    """Seconds an image, the second time."""
    run()
    start = time.perf_counter()
    images = run()
    return (time.perf_counter() - start) / images
