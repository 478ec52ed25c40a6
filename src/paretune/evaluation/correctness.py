"""Clean and robust correctness of a model, example by example."""

import contextlib
import itertools
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
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
        attacks: for example ``[PGD(Linf(4/255), steps=20)]``.
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
        seen: called with what is judged, some examples at a time: None or an attack, places (n,) of the examples in
            ``data``, the clean or attacked images (n, channels, height, width) there, and the logits (n, classes) of
            ``model`` for them. Examples that are wrong when clean are not attacked, and those that ``state`` holds are not
            seen again. What ``shifts`` make is not seen.

    Raises:
        TypeError: something in ``attacks`` is not an attack, or in ``shifts`` no shift.
        ValueError: ``data`` is empty, or its images and labels are not what attacks take; the model returns NaN, an
            infinite largest logit, or something else than two or more logits an image, the labels among them; the model
            and ``data`` have other classes; two attacks are the same, or one leaves its ball by design; or ``state``
            belongs to another evaluation, holds a damaged file, or is given with a ``victim`` whose precision is open;
            or ``engine`` is given with a ``victim``.
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
    if state is not None and victim is not None and victim.precision == "auto":
        raise ValueError(
            "a continued evaluation could choose another precision than the first; make the victim with "
            "precision='fp32' or 'bf16', or leave out state"
        )
    bits = np.zeros((1 + len(attacks), len(data)), dtype=bool)
    if victim is None and attacks:
        victim = attack_copy(model, engine=engine)
    asked, searched = (
        model,
        victim,
    )  # what shifts make has classes of its own, and the model itself is asked there
    if data.among is not None:
        asked = Among(model, data.among)
        searched = victim and attack_copy(asked, **vars(victim.options))
    rank, world = shard
    batches = torch.split(torch.arange(len(data)), batch_size)
    most = max((attack.portion for attack in attacks), default=1)
    # The same portions for any number of shards, so that each batch that the model sees is the same too.
    together = min(most, max(1, len(batches) // SHARED))
    portions = [torch.cat(batches[start : start + together]) for start in range(0, len(batches), together)]
    portions = portions[rank::world]
    run = _Run(asked, searched, attacks, data, batch_size, seed, seen)
    with evaluation_mode(asked), contextlib.ExitStack() as held:
        kept = None
        if state is not None:
            held.enter_context(
                claimed(state, run.plan(shard, together if together < most else None), run.probe())
            )
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
        clean = self._right(images, labels, None, places)
        # An example that is wrong when clean is not robust; only the others are attacked.
        rows = clean.nonzero().flatten()
        # What cannot run on so many classes raises here, before anything is attacked.
        passes = [attack.passes(self.classes) for attack in self.attacks]
        robust = []
        for number, attack in enumerate(self.attacks):

            def told(fraction: float, note: str, number: int = number) -> None:
                show((sum(passes[:number]) + fraction * passes[number]) / sum(passes), note)

            survived, began = torch.zeros_like(clean), time.perf_counter()
            if len(rows):
                attacked = attack.on_set(
                    self._victim,
                    images[rows],
                    labels[rows],
                    seed=self.seed,
                    places=places[rows.cpu()],
                    batch_size=self.batch_size,
                    state=scratch and scratch / str(number),
                    progress=told,
                )
                survived[rows] = self._right(attacked, labels[rows], attack, places[rows.cpu()])
            self.seconds[attack] = self.seconds.get(attack, 0.0) + time.perf_counter() - began
            robust.append(survived)
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
    def _victim(self) -> AttackCopy:
        assert self.victim is not None  # made where there are attacks
        return self.victim

    def _take(self, places: Tensor) -> tuple[Tensor, Tensor]:
        first = next(itertools.chain(self.model.parameters(), self.model.buffers()), torch.empty(0))
        images, labels = (part.to(first.device) for part in self.data[places])
        check_images(images, first.device)
        if self.data.among is not None:  # the model has no other logits
            labels = torch.searchsorted(torch.tensor(self.data.among, device=labels.device), labels)
        return images, check_classes("labels", labels, images)

    def _right(self, images: Tensor, labels: Tensor, attack: Attack | None, places: Tensor) -> Tensor:
        right = []
        parts = (torch.split(tensor, self.batch_size) for tensor in (images, labels, places))
        for some, true, where in zip(*parts, strict=True):
            logits = self._logits(some, true)
            right.append(predicted(logits) == true)
            if self.seen is not None:
                self.seen(attack, where, some, logits)
        return torch.cat(right)

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
