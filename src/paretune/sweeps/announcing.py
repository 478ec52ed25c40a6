"""What a sweep is about to do, told before it begins: its data, and about how long it will take."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from paretune.data.images import ImageData
from paretune.data.sizes import pair
from paretune.shifts import shifted
from paretune.sweeps.config import RunConfig, TaskConfig
from paretune.sweeps.costs import PIXELS, Work, makespan, measured


def data_line(data: ImageData, config: TaskConfig | None = None) -> str:
    """Images of each split, their size, the classes with the fewest and the most images of one, and the shifts measured."""
    splits = (data.train, data.select, data.report)
    counts = sum(torch.bincount(split.labels, minlength=len(data.classes)) for split in splits)
    assert isinstance(counts, torch.Tensor)
    least, most = int(counts.min()), int(counts.max())
    per_class = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    names = ", ".join(data.classes[:5]) + (", …" if len(data.classes) > 5 else "")
    size = "x".join(map(str, pair(data.image_size)))
    train, select, report = (f"{len(split):,}" for split in splits)
    verb = "is" if data.skipped == 1 else "are"
    return (
        f"{data.name}: {int(counts.sum()):,} images at {size}: {train} to train on, {select} to select by, {report} to "
        f"report; {len(data.classes)} classes ({names}) of {per_class} images"
        + "".join(f"; {len(split):,} of {name} elsewhere" for name, split in data.elsewhere.items())
        + ("" if config is None else _shifts(data, config))
        + (f"; {data.skipped} that cannot be read {verb} left out" if data.skipped else "")
    )


def _shifts(data: ImageData, config: TaskConfig) -> str:
    sets = shifted(replace(data, elsewhere={}), config.shifts or (), config.shift_limit).elsewhere
    if not sets:
        return ""
    images = sum(map(len, sets.values()))
    kinds = ", ".join([*sets][:3]) + (", …" if len(sets) > 3 else "")
    return f"; shifts ({kinds}): {len(sets):,} sets of {images:,} images in all, at each of {config.points} points"


def time_line(left: Sequence[tuple[RunConfig, int]], data: ImageData, *, workers: int, threads: int) -> str:
    """About how many minutes the runs take, from one step of training and one batch of evaluation of the first.

    Evaluation is counted as if every image had to be attacked to the end, so that it often takes less.

    Args:
        left: the runs, and how many steps of each are done.
        data: what they train on.
        workers: processes that share them.
        threads: of each process.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        cost = measured(left[0][0], data, PIXELS)
    finally:
        torch.set_num_threads(before)
    seconds = [cost.seconds(Work.of(config, data, done)) for config, done in left]
    runs = f"{len(left)} run{'s' if len(left) > 1 else ''} of {left[0][0].steps(data):,} steps"
    at_once = f", {workers} at once" if workers > 1 else ""
    return f"{runs}{at_once}: about {minutes_text(makespan(seconds, workers))}"


def minutes_text(seconds: float) -> str:
    """``90 minutes``, or ``200 minutes (3.3 hours)``."""
    minutes = max(1, round(seconds / 60))
    hours = f" ({minutes / 60:.1f} hours)" if minutes >= 120 else ""
    return f"{minutes:,} minute{'s' if minutes > 1 else ''}{hours}"
