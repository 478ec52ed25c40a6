"""Clean and robust correctness of a model, example by example."""

import contextlib
import itertools
import shutil
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paretune.attacks import Attack, AttackCopy, Engine, attack_copy
from paretune.attacks.inputs import check_classes, check_images, check_logits, predicted
from paretune.attacks.state import PROBED, claimed, keep, reading
from paretune.backbones.among import Among
from paretune.backbones.backbone import answer, task_of
from paretune.backbones.bases import check_values
from paretune.backbones.modes import evaluation_mode
from paretune.data.image_split import ImageSplit
from paretune.data.images import as_split, check_same_classes
from paretune.evaluation.reuse import Breaks, Candidates, family, rising
from paretune.evaluation.scores import Bits, Scores
from paretune.runs.progress import bars
from paretune.shifts import Shift, shifted_splits

SHARED = 8  # portions that there are at least, if there are as many batches

Seen = Callable[[Attack | None, Tensor, Tensor, Tensor], None]


def evaluate(
    model: nn.Module,
    data: ImageSplit | Any,
    attacks: Sequence[Attack] = (),
    *,
    shifts: Sequence[Shift] = (),
    attack_elsewhere: bool = False,
    epsilons: Sequence[float] | None = None,
    batch_size: int = 128,
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    victim: AttackCopy | None = None,
    engine: Engine = "auto",
    progress: bool = False,
    state: str | Path | None = None,
    candidates: Candidates | None = None,
    seen: Seen | None = None,
) -> Scores:
    """Measure ``model`` on every example of ``data``: clean, and under each attack.

    The attack searches on a copy made for speed; every answer that counts is given by ``model`` itself, in evaluation
    mode. The model is left as it was. Several threads may evaluate one model at once, but not while another trains it.

    Args:
        model: a classifier of images in [0, 1].
        data: for example ``load_data("digits").report``. Its labels must mean what the logits of the model mean: where the
            names of both are known, as they are of an adapter and of a data set, other names are refused. Of what else
            :func:`~paretune.load_data` takes, all examples are measured, at the image size of ``model``; splits of its own,
            and the data that ``model`` was trained on, are refused.
        attacks: for example ``[PGD(Linf(4/255), steps=20)]``. Of those that differ in their radius alone the smallest
            runs first. What it breaks is broken at the larger ones, and not attacked again; so is a point of a larger ball
            counted in the smaller ones that it lies in. Robust accuracy falls with the radius then, and is never above
            that of attacks which know nothing of each other.
        shifts: measure what these make of ``data`` too, for example ``[Corruptions("common")]``: it is in ``elsewhere`` of
            what is returned.
        attack_elsewhere: run the attacks on that too; else only its clean accuracy is measured.
        epsilons: evaluate each attack at each of these instead of at its own.
        batch_size: images at once.
        seed: seeds the attacks; the same seed gives the same bits. Attacks draw for each image as they do in one call on
            the whole of ``data``, whatever the batch size and the shard.
        shard: (rank, world): only every world-th portion from rank on; the other bits are False, so that the bits of
            all ranks add up to those of one call. A portion is a batch, or for AutoAttack up to 8, but always so few that
            there are 8 portions if there are 8 batches: with more shards than portions, some have nothing to do.
        victim: attack copy of ``model`` as it is now, to search on; made when None. Give one to choose its precision, as
            ``attack_copy(model, precision="auto")`` does, or to evaluate often.
        engine: what takes the steps and the looks of attacks on the copy that is made, see
            :func:`~paretune.attacks.attack_copy`; a ``victim`` has its own.
        progress: show a bar with the time left on the terminal.
        state: a directory to keep finished batches in. An evaluation that was killed continues there with the same
            call, and its bits are those of an uninterrupted one.
        candidates: points to try before each attack, those that broke the model before its weights changed; what breaks it
            now is kept there. An example that one of them breaks is not attacked. Not for what ``shifts`` make.
        seen: called with what is judged, some examples at a time: None or an attack, places (n,) of the examples in
            ``data``, the clean or attacked images (n, channels, height, width) there, and the logits (n, classes) of
            ``model`` for them. An example that is broken without an attack of its own is seen with the point that breaks
            it. One may be seen twice under an attack: where a larger one finds a point of its ball, the last one counts.
            Examples that are wrong when clean are not attacked, and those that ``state`` holds are not seen again. What
            ``shifts`` make is not seen.

    Raises:
        TypeError: something in ``attacks`` is not an attack, or in ``shifts`` no shift.
        ValueError: ``data`` is empty, or its images and labels are not what attacks take; the model returns NaN, an
            infinite largest logit, or something else than two or more logits an image, the labels among them; the model
            and ``data`` have other classes; two attacks are the same, or one leaves its ball by design; or ``state``
            belongs to another evaluation, holds a damaged file, or is given with a ``victim`` whose precision is open;
            or ``engine`` is given with a ``victim``; ``candidates`` are of another split, or given with ``state``.
        BlockingIOError: another process is at work in ``state``.
    """
    trained = task_of(model)
    _check_domains(data, (trained.data or {}).get("loaded_with"))
    data = as_split(
        data, getattr(model, "image_size", None), trained.classes, (trained.data or {}).get("learnt")
    )
    if len(data) == 0:
        raise ValueError("data has no examples")
    if attack_elsewhere and not shifts:
        raise ValueError("attack_elsewhere attacks what shifts make; give shifts")
    check_values(model)
    elsewhere = shifted_splits(data, shifts)
    if epsilons is not None:
        attacks = [attack.with_epsilon(epsilon) for attack in attacks for epsilon in epsilons]
    if len(set(attacks)) < len(attacks):
        raise ValueError(f"two attacks are the same: {', '.join(map(repr, attacks))}")
    for attack in attacks:
        if not isinstance(attack, Attack):
            raise TypeError(f"attacks must hold attacks such as PGD(Linf(4/255)), got {attack!r}")
        if not attack.in_ball:
            raise ValueError(
                f"{attack!r} leaves its ball by design: train with it, and evaluate with PGD or AutoAttack"
            )
    if victim is not None and engine != "auto":
        raise ValueError(f"engine={engine!r} is not for a victim that is given; make it with that engine")
    if state is not None and candidates is not None:
        raise ValueError(
            "state keeps which examples are right, but no points for candidates; give one of them"
        )
    if state is not None and victim is not None and victim.precision == "auto":
        raise ValueError(
            "a continued evaluation could choose another precision than the first; make the victim with "
            "precision='fp32' or 'bf16', or leave out state"
        )
    bits = np.zeros((1 + len(attacks), len(data)), dtype=bool)
    if victim is None and attacks:
        victim = attack_copy(model, engine=engine)
    asked, searched = model, victim
    if data.among is not None:  # what shifts make may be of other classes, of which the model itself is asked
        asked = Among(model, data.among)
        searched = victim and attack_copy(asked, **vars(victim.options))
    rank, world = shard
    batches = torch.split(torch.arange(len(data)), batch_size)
    most = max((attack.portion for attack in attacks), default=1)
    # The same portions for any number of shards, so that each batch that the model sees is the same too.
    together = min(most, max(1, len(batches) // SHARED))
    portions = [torch.cat(batches[start : start + together]) for start in range(0, len(batches), together)]
    portions = portions[rank::world]
    if candidates is not None:
        candidates.begin(data, attacks, torch.cat([torch.arange(0), *portions]))
    run = _Run(asked, searched, attacks, data, batch_size, seed, candidates, seen)
    with evaluation_mode(asked), contextlib.ExitStack() as held:
        kept = None
        if state is not None:
            portion = together if together < most else None
            held.enter_context(claimed(state, run.plan(shard, portion), run.probe()))
            kept = _Kept(Path(state))
        shown = held.enter_context(bars(enabled=progress))
        task = shown.add_task("evaluate", total=sum(map(len, portions)), note="")
        done = 0
        for number, places in enumerate(portions):

            def show(fraction: float, note: str, done: int = done, size: int = len(places)) -> None:
                shown.update(task, completed=done + fraction * size, note=note)

            measured = kept.read(number, (1 + len(attacks), len(places))) if kept else None
            if measured is None:
                measured = run.measure(places, kept.scratch(number) if kept else None, show)
                if kept:
                    kept.write(number, measured)
            bits[:, places.numpy()] = measured
            done += len(places)
            shown.update(task, completed=done)
    scores = {}
    with bars(enabled=progress and bool(elsewhere)) as shown:
        task = shown.add_task("shifts", total=len(elsewhere), note="")
        for number, (name, split) in enumerate(elsewhere.items()):
            shown.update(task, completed=number, note=name)
            scores[name] = evaluate(
                model,
                split,
                attacks if attack_elsewhere else (),
                batch_size=batch_size,
                seed=seed,
                shard=shard,
                victim=victim if attack_elsewhere else None,
                state=None if state is None else Path(state) / "elsewhere" / str(number),
            )
        if elsewhere:
            shown.update(task, completed=len(elsewhere), note="")
    return Scores(
        bits[0],
        dict(zip(attacks, bits[1:], strict=True)),
        data.fingerprint,
        run.classes,
        data.labels.cpu().numpy(),
        data.classes,
        run.seconds,
        data.shift,
        data.paired,
        scores,
    )


def _check_domains(data: Any, loaded_with: Any) -> None:
    """Refuse the very table or folder of which the model has learnt some domains."""
    known = loaded_with if isinstance(loaded_with, Mapping) else {}  # notes are free
    domains = known.get("train_domains")
    if domains and isinstance(data, str | Path) and str(Path(data).resolve()) == known.get("name_or_path"):
        raise ValueError(
            f"the model was trained on the domains {', '.join(domains)} of {data}; measure report or elsewhere of "
            "load_data(..., train_domains=...), with the seed of the training"
        )


@dataclass(eq=False)
class _Run:
    """One evaluation; it holds arguments of :func:`evaluate`, the number of logits, and the seconds of each attack."""

    model: nn.Module
    victim: AttackCopy | None
    attacks: Sequence[Attack]
    data: ImageSplit
    batch_size: int
    seed: int
    candidates: Candidates | None
    seen: Seen | None
    classes: int = 0
    seconds: dict[Attack, float] = field(default_factory=dict)

    def measure(self, places: Tensor, scratch: Path | None, show: Callable[[float, str], None]) -> Bits:
        """Bits (1 + attacks, places) of the examples at ``places``: clean, and under each attack.

        Args:
            places: numbers of the examples.
            scratch: where long attacks keep what they have done of them; None for nowhere.
            show: called with the fraction of all passes that is done, and what is being done.
        """
        images, labels = self._take(places)
        clean, logits = self.judged(images, labels)
        self.tell(None, places, images, logits)
        # An example that is wrong when clean is not robust; only the others are attacked.
        rows = clean.nonzero().flatten()
        # What cannot run on so many classes raises here, before anything is attacked.
        passes = [attack.passes(self.classes) for attack in self.attacks]
        portion = _Portion(self, images[rows], labels[rows], places[rows.cpu()])
        done = 0
        for number in rising(self.attacks):

            def told(fraction: float, note: str, done: int = done, size: int = passes[number]) -> None:
                show((done + fraction * size) / sum(passes), note)

            attack, began = self.attacks[number], time.perf_counter()
            portion.attack(attack, scratch and scratch / str(number), told)
            self.seconds[attack] = self.seconds.get(attack, 0.0) + time.perf_counter() - began
            done += passes[number]
        robust = [
            torch.zeros_like(clean).index_put((rows,), portion.right[attack]) for attack in self.attacks
        ]
        bits: Bits = torch.stack([clean, *robust]).cpu().numpy()
        return bits

    def plan(self, shard: tuple[int, int], together: int | None) -> dict[str, Any]:
        """What identifies the run beside its model; the batches of a portion where they are not as many as attacks like."""
        # The engines but "compiled" give the same bits.
        compiled = self.victim is not None and self.victim.options.engine == "compiled"
        named = {"portion": together} if together else {}
        return (
            ({"engine": "compiled"} if compiled else {})
            | named
            | ({"radii": "rising"} if self.several else {})
            | {
                "attacks": [attack.to_dict() for attack in self.attacks],
                "precision": self.victim.precision if self.victim else "",
                "seed": self.seed,
                "batch_size": self.batch_size,
                "shard": list(shard),
                "data": self.data.fingerprint,
            }
        )

    def probe(self) -> Tensor:
        """Logits (some, classes) that recognise the model."""
        images, labels = self._take(torch.arange(min(PROBED, len(self.data))))
        return self._logits(images, labels).float().cpu()

    @property
    def several(self) -> set[Hashable]:
        """The families of attacks that have several radii."""
        return {name for name, radii in Counter(map(family, self.attacks)).items() if radii > 1}

    def _take(self, places: Tensor) -> tuple[Tensor, Tensor]:
        first = next(itertools.chain(self.model.parameters(), self.model.buffers()), torch.empty(0))
        images, labels = (part.to(first.device) for part in self.data[places])
        check_images(images, first.device)
        if self.data.among is not None:  # the model has no other logits
            labels = torch.searchsorted(torch.tensor(self.data.among, device=labels.device), labels)
        return images, check_classes("labels", labels, images)

    def judged(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) whether the model is right for each image, and its logits (n, classes)."""
        logits = torch.cat(
            [
                self._logits(some, true)
                for some, true in zip(*map(self._batches, (images, labels)), strict=True)
            ]
        )
        return predicted(logits) == labels, logits

    def tell(self, attack: Attack | None, places: Tensor, images: Tensor, logits: Tensor) -> None:
        """Show who wants to see it what is judged."""
        if self.seen is not None and len(places):
            for shown in zip(*map(self._batches, (places, images, logits)), strict=True):
                self.seen(attack, *shown)

    def _batches(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return torch.split(tensor, self.batch_size)

    def _logits(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            logits = answer(self.model, images)
        check_logits(logits, len(images), int(labels.max()))
        if not self.classes:
            known, named = task_of(self.model).classes, self.data.classes
            total = logits.shape[1] if self.data.among is None or named is None else len(known or named)
            check_same_classes(total, known, named)
        self.classes = logits.shape[1]
        return logits


@dataclass(eq=False)
class _Portion:
    """Examples that are right when clean: which of them withstand each attack so far, and what breaks the others.

    Args:
        run: that they are part of.
        images: (n, channels, height, width).
        labels: (n,).
        places: (n,) of them in the data.
    """

    run: _Run
    images: Tensor
    labels: Tensor
    places: Tensor
    right: dict[Attack, Tensor] = field(default_factory=dict)
    broken: dict[Hashable, Breaks] = field(default_factory=dict)

    def attack(self, attack: Attack, scratch: Path | None, told: Callable[[float, str], None]) -> None:
        """Count what breaks examples under ``attack`` already, and let it search on the others."""
        run = self.run
        self.right[attack] = torch.ones_like(self.labels, dtype=torch.bool)
        if (known := self.broken.get(family(attack))) is not None:
            self._count(attack, known)
        if run.candidates is not None:
            left = self.right[attack].nonzero().flatten()
            some, points = run.candidates.points(attack, self.places[left.cpu()], self.images[left])
            if len(some):
                rows = left[some]
                right, logits = run.judged(points, self.labels[rows])
                self._found(attack, Breaks(rows, points, logits).take(~right))
        left = self.right[attack].nonzero().flatten()
        if len(left):
            assert run.victim is not None  # made where there are attacks
            points = attack.on_set(
                run.victim,
                self.images[left],
                self.labels[left],
                seed=run.seed,
                places=self.places[left.cpu()],
                batch_size=run.batch_size,
                state=scratch,
                progress=told,
            )
            right, logits = run.judged(points, self.labels[left])
            searched = Breaks(left, points, logits)
            run.tell(attack, self.places[left[right].cpu()], points[right], logits[right])
            self._found(attack, searched.take(~right))

    def _found(self, attack: Attack, breaks: Breaks) -> None:
        """Count what is new at the radius of ``attack``, also where it lies in a smaller ball."""
        self._count(attack, breaks)
        name = family(attack)
        if name not in self.run.several:
            return
        for smaller, right in self.right.items():
            if smaller != attack and family(smaller) == name:
                inside = breaks.take(right[breaks.rows]).inside(smaller.threat, self.images)
                self._count(smaller, inside)
        self.broken[name] = Breaks.joined([*filter(None, [self.broken.get(name)]), breaks])

    def _count(self, attack: Attack, breaks: Breaks) -> None:
        where = self.places[breaks.rows.cpu()]
        self.right[attack][breaks.rows] = False
        self.run.tell(attack, where, breaks.points, breaks.logits)
        if self.run.candidates is not None:
            self.run.candidates.keep(attack, where, self.images[breaks.rows], breaks.points)


class _Kept:
    """What an evaluation has finished, on disk: the bits of each portion, and meanwhile the state of each long attack."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, portion: int, shape: tuple[int, int]) -> Bits | None:
        """What :meth:`write` got, else None.

        Raises:
            ValueError: the file is damaged; the message says how to go on.
        """
        file = self._file(portion)
        if not file.exists():
            return None
        with reading(file) as (tensors, _):
            bits: Bits = tensors["bits"].numpy()
            if bits.dtype != bool or bits.shape != shape or (bits[1:] & ~bits[0]).any():
                raise ValueError(f"bits of shape {bits.shape} are not clean ones and robust ones of {shape}")
            return bits

    def write(self, portion: int, bits: Bits) -> None:
        """Keep the bits of a portion, and forget what led to them."""
        keep(self._file(portion), {"bits": torch.from_numpy(bits)}, {})
        shutil.rmtree(self.scratch(portion), ignore_errors=True)

    def scratch(self, portion: int) -> Path:
        """A directory for the attacks on a portion."""
        return self._path / f"{portion:06d}"

    def _file(self, portion: int) -> Path:
        return self._path / f"{portion:06d}.safetensors"
