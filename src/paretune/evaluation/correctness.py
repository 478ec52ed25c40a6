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
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from paretune.attacks import Attack, AttackCopy, Engine, attack_copy
from paretune.attacks.inputs import check_classes, check_images, check_logits, predicted
from paretune.attacks.state import PROBED, claimed, keep, reading
from paretune.backbones.backbone import answer, task_of
from paretune.backbones.bases import check_values
from paretune.backbones.modes import evaluation_mode
from paretune.data.images import ImageSplit, as_split, check_same_classes
from paretune.frontiers.classes import ByClass, by_class, name_of, wilson
from paretune.runs.progress import bars

Bits = NDArray[np.bool_]
Seen = Callable[[Attack | None, Tensor, Tensor, Tensor], None]


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """Which examples a model gets right; prints as a table of accuracies with Wilson's 95 % intervals.

    Args:
        clean: (examples,) booleans, right on the clean image.
        robust: for each attack (examples,) booleans, right on the clean and on the attacked image.
        split: fingerprint of the examples.
        classes: number of the model's logits; 0 where no example was measured here.
        labels: (examples,) true classes, int64.
        names: name of each class; None where nobody named them.
        seconds: that each attack took here; what was read from ``state`` takes none.
    """

    clean: Bits
    robust: dict[Attack, Bits]
    split: str
    classes: int = 0
    labels: NDArray[np.int64] | None = None
    names: tuple[str, ...] | None = None
    seconds: dict[Attack, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        bits = {"clean": self.clean} | {self.ran(attack): right for attack, right in self.robust.items()}
        table = {}
        for name, right in bits.items():
            low, high = wilson(right.mean(), len(right), 0.95)
            table[name] = {"accuracy": f"{right.mean():.3f}", "95% interval": f"{low:.3f} to {high:.3f}"}
        frame = pd.DataFrame.from_dict(table, orient="index")
        if self.labels is not None:
            balanced = [self.balanced_accuracy(attack) for attack in (None, *self.robust)]
            frame["balanced"] = [f"{accuracy:.3f}" for accuracy in balanced]
        return f"{len(self.clean):,} examples\n{frame.to_string()}"

    @property
    def clean_accuracy(self) -> float:
        """Fraction right on clean images."""
        return float(self.clean.mean())

    def robust_accuracy(self, attack: Attack) -> float:
        """Fraction right on clean and attacked images; an upper bound on the true one."""
        return float(self.robust[attack].mean())

    def balanced_accuracy(self, attack: Attack | None = None) -> float:
        """Mean over the classes of the fraction right, so that rare classes count as much as common ones.

        Args:
            attack: right on the clean and on the attacked image; None for the clean one alone.
        """
        return float(self._by_class(attack).accuracy.mean())

    def per_class(self, attack: Attack | None = None, *, level: float = 0.95) -> pd.DataFrame:
        """One row per class, worst first: class, examples, clean, clean_low, clean_high, and with an attack robust,
        robust_low, robust_high. Worst is the lowest robust accuracy, or clean accuracy without an attack.

        Args:
            attack: one of those that were evaluated; None for the clean images alone.
            level: of the intervals, in (0, 1). They are Wilson's, see :mod:`paretune.frontiers.classes`.
        """
        measured = {"clean": self._by_class(None, level)}
        if attack is not None:
            measured["robust"] = self._by_class(attack, level)
        columns: dict[str, Any] = {
            "class": [name_of(label, self.names) for label in measured["clean"].labels],
            "examples": measured["clean"].examples,
        }
        for name, rates in measured.items():
            columns |= {name: rates.accuracy, f"{name}_low": rates.low, f"{name}_high": rates.high}
        worst = [*measured.values()][-1].worst_first
        return pd.DataFrame(columns).iloc[worst].reset_index(drop=True)

    def _by_class(self, attack: Attack | None, level: float = 0.95) -> ByClass:
        if self.labels is None:
            raise ValueError("these scores have no labels, so nothing can be said of their classes")
        bits = self.clean if attack is None else self.robust[attack]
        return by_class(self.labels, bits[None], level=level)

    def ran(self, attack: Attack) -> str:
        """The call of ``attack`` as it ran on this model; see :meth:`~paretune.attacks.Attack.on`."""
        return repr(attack.on(self.classes) if self.classes else attack)

    def to_frame(self) -> pd.DataFrame:
        """One row per attack: attack, in the variant that ran, threat, epsilon, clean, robust, examples."""
        return pd.DataFrame(
            [
                {
                    "attack": self.ran(attack),
                    "threat": type(attack.threat).__name__,
                    "epsilon": attack.threat.epsilon,
                    "clean": self.clean_accuracy,
                    "robust": self.robust_accuracy(attack),
                    "examples": len(self.clean),
                }
                for attack in self.robust
            ],
            columns=["attack", "threat", "epsilon", "clean", "robust", "examples"],
        )


def evaluate(
    model: nn.Module,
    data: ImageSplit | Any,
    attacks: Sequence[Attack] = (),
    *,
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
        epsilons: evaluate each attack at each of these instead of at its own.
        batch_size: images at once.
        seed: seeds the attacks; the same seed gives the same bits. Attacks draw for each image as they do in one call on
            the whole of ``data``, whatever the batch size and the shard.
        shard: (rank, world): only every world-th batch from rank on; the other bits are False, so that the bits of
            all ranks add up.
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
            seen again.

    Raises:
        TypeError: something in ``attacks`` is not an attack.
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
    check_values(model)
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
    rank, world = shard
    batches = torch.split(torch.arange(len(data)), batch_size)[rank::world]
    together = max((attack.portion for attack in attacks), default=1)
    portions = [torch.cat(batches[start : start + together]) for start in range(0, len(batches), together)]
    run = _Run(model, victim, attacks, data, batch_size, seed, seen)
    with evaluation_mode(model), contextlib.ExitStack() as held:
        kept = None
        if state is not None:
            held.enter_context(claimed(state, run.plan(shard), run.probe()))
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
    robust = dict(zip(attacks, bits[1:], strict=True))
    names = data.classes
    return Scores(
        bits[0], robust, data.fingerprint, run.classes, data.labels.cpu().numpy(), names, run.seconds
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

    def plan(self, shard: tuple[int, int]) -> dict[str, Any]:
        """What identifies the run beside its model."""
        # The engines but "compiled" give the same bits.
        compiled = self.victim is not None and self.victim.options.engine == "compiled"
        return ({"engine": "compiled"} if compiled else {}) | {
            "attacks": [attack.to_dict() for attack in self.attacks],
            "precision": self.victim.precision if self.victim else "",
            "seed": self.seed,
            "batch_size": self.batch_size,
            "shard": list(shard),
            "data": self.data.fingerprint,
        }

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
            check_same_classes(logits.shape[1], task_of(self.model).classes, self.data.classes)
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
