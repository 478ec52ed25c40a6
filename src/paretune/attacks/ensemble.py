"""Running a sequence of attacks on a set of images, each on what the earlier ones left.

Batches are refilled between stages, progress is counted in passes, and finished batches can be kept on disk.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from paretune.attacks.autoattack_state import Journal, Outcome
from paretune.attacks.base import Call
from paretune.attacks.inputs import isolated_randomness
from paretune.attacks.masking import black_box_wins, random_forward, zero_gradients
from paretune.attacks.search import Examples, Search, SearchAttack

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One attack of the sequence and what it did.

    Args:
        name: for example ``"apgd-ce"``.
        attack: the attack itself.
        attacked: images that the earlier stages had left.
        robust: images that are left after it.
        seconds: wall time.
        forwards: images that went through the model.
        backwards: images whose gradient was computed.
    """

    name: str
    attack: SearchAttack
    attacked: int
    robust: int
    seconds: float
    forwards: int
    backwards: int


@dataclass(frozen=True, eq=False)
class AutoAttackResult:
    """What AutoAttack found.

    Args:
        images: (images, ...) float32: adversarial images, and the clean image where none was found.
        clean: (images,) booleans, classified correctly without an attack.
        robust: (images,) booleans, still classified correctly after all stages.
        stages: in the order in which they ran.
        findings: warnings about the model, which were logged too; see :mod:`paretune.attacks.masking`.
    """

    images: Tensor
    clean: Tensor
    robust: Tensor
    stages: tuple[Stage, ...]
    findings: tuple[str, ...]

    @property
    def robust_accuracy(self) -> float:
        """Fraction of all images that is left; an upper bound on the true robust accuracy."""
        return int(self.robust.sum()) / max(len(self.robust), 1)


@dataclass(frozen=True)
class AutoAttackStatus:
    """How far a run is.

    Args:
        stage: name of the running stage.
        robust: images that are left so far.
        images: images of the set.
        passes: forward and backward passes done, each counted per image.
        total: passes if no further image is solved: an upper bound.
        seconds_left: at the present speed, at most.
    """

    stage: str
    robust: int
    images: int
    passes: int
    total: int
    seconds_left: float

    def __str__(self) -> str:
        return f"{self.stage}  robust {self.robust}/{self.images}"


class Ensemble:
    """One run: what is left, and how far it is."""

    def __init__(
        self,
        stages: Callable[[int], Mapping[str, SearchAttack]],  # by the number of classes
        call: Call,
        batch_size: int,
    ) -> None:
        self.oracle, self.streams, self.batch_size = call.oracle, call.streams, batch_size
        self.images, self.labels = call.images, call.goals
        parts = torch.split(self.images, batch_size)
        self.clean = torch.cat([self.oracle.exact(part) for part in parts])  # (images, classes)
        self.stages = stages(self.clean.shape[1])
        self.right = self.oracle.classes(self.clean) == self.labels
        self.robust = self.right.clone()
        self.adversarial = self.images.clone()
        classes = self.clean.shape[1]
        self.passes = {name: attack.passes(classes) for name, attack in self.stages.items()}
        self.done = 0  # passes of finished batches, had nothing been solved in them

    def run(
        self,
        journal: Journal | None,
        progress: bool | Callable[[AutoAttackStatus], None] = False,
        *,
        look_for_noise: bool,
    ) -> AutoAttackResult:
        """All stages, until nothing is left.

        Args:
            journal: where finished batches are kept, and read from.
            progress: see :meth:`AutoAttack.run`.
            look_for_noise: warn if the forward pass is random.
        """
        findings: list[str | None] = []
        if look_for_noise:
            first = slice(0, self.batch_size)
            findings.append(random_forward(self.clean[first], self.oracle.exact(self.images[first])))
        done: list[Stage] = []
        with _shown(progress) as show:
            for number, (name, attack) in enumerate(self.stages.items()):
                left = int(self.robust.sum())
                if not left:
                    break
                outcomes = self._stage(number, name, journal, show)
                robust = int(self.robust.sum())
                seconds = sum(outcome.seconds for outcome in outcomes)
                forwards = sum(outcome.forwards for outcome in outcomes)
                backwards = sum(outcome.backwards for outcome in outcomes)
                done.append(Stage(name, attack, left, robust, seconds, forwards, backwards))
                logger.info("%s: %d of %d images left", name, robust, len(self.images))
                if name == "apgd-ce":
                    zeros = sum(outcome.zero_gradients for outcome in outcomes)
                    looked = sum(outcome.first_gradients for outcome in outcomes)
                    findings.append(zero_gradients(zeros, looked))
                if name == "square":
                    findings.append(black_box_wins(left - robust, left, len(self.images)))
        warnings = tuple(finding for finding in findings if finding)
        for finding in warnings:
            logger.warning("%s", finding)
        return AutoAttackResult(self.adversarial, self.right, self.robust, tuple(done), warnings)

    def _stage(
        self, number: int, name: str, journal: Journal | None, show: Callable[[AutoAttackStatus], None]
    ) -> list[Outcome]:
        outcomes = []
        threat = self.stages[name].threat
        # The batches follow from what was left when the stage began, so that a continued run cuts the same ones.
        for index, rows in enumerate(torch.split(self.robust.nonzero().flatten(), self.batch_size)):
            outcome = journal.read(number, index, rows.cpu(), self.images, threat) if journal else None
            if outcome is None:
                outcome = self._batch(name, rows, index, show)
                if journal:
                    journal.write(number, index, outcome)
            solved = outcome.rows.to(rows.device)
            self.adversarial[solved] = outcome.images.to(self.adversarial)
            self.robust[solved] = False
            self.done += len(rows) * self.passes[name]
            outcomes.append(outcome)
        return outcomes

    def _batch(
        self, name: str, rows: Tensor, index: int, show: Callable[[AutoAttackStatus], None]
    ) -> Outcome:
        oracle, streams = self.oracle, self.streams.take(rows).derive(name)
        examples = Examples(self.images[rows], self.labels[rows], self.clean[rows], streams)
        search = Search(oracle, examples)
        before = oracle.forwards, oracle.backwards, oracle.zero_gradients, oracle.first_gradients
        started = time.perf_counter()
        oracle.on_pass = self._reporter(name, before[0] + before[1], len(rows), started, show)
        try:
            # Seeded anew for each batch, for models that draw numbers themselves.
            with isolated_randomness(streams.derive(f"batch {index}").seed, rows.device):
                self.stages[name].solve(search)
                images, solved = search.images, search.solved
                if oracle.victim.precision != "fp32":
                    # What the fast copy takes for robust may be solved all the same.
                    open_rows = (~solved).nonzero().flatten()
                    if len(open_rows):
                        predicted = oracle.classes(oracle.exact(images[open_rows]))
                        solved[open_rows] = predicted != examples.labels[open_rows]
        finally:
            oracle.on_pass = lambda: None
        oracle.finish()
        return Outcome(
            rows[solved].cpu(),
            images[solved],
            seconds=time.perf_counter() - started,
            forwards=oracle.forwards - before[0],
            backwards=oracle.backwards - before[1],
            zero_gradients=oracle.zero_gradients - before[2],
            first_gradients=oracle.first_gradients - before[3],
            precision=oracle.victim.precision,
        )

    def _reporter(
        self, name: str, before: int, size: int, started: float, show: Callable[[AutoAttackStatus], None]
    ) -> Callable[[], None]:
        """What to call after each pass of a batch."""
        left, names = int(self.robust.sum()), list(self.passes)
        share, stage_rest = size * self.passes[name], max(left - size, 0) * self.passes[name]
        later = left * sum(self.passes[later_name] for later_name in names[names.index(name) + 1 :])
        total = self.done + share + stage_rest + later

        def report() -> None:
            passes = min(self.oracle.forwards + self.oracle.backwards - before, share)
            speed = passes / max(time.perf_counter() - started, 1e-9)
            show(
                AutoAttackStatus(
                    stage=name,
                    robust=left,
                    images=len(self.images),
                    passes=self.done + passes,
                    total=total,
                    seconds_left=(total - self.done - passes) / max(speed, 1e-9),
                )
            )

        return report


@contextlib.contextmanager
def _shown(
    progress: bool | Callable[[AutoAttackStatus], None],
) -> Iterator[Callable[[AutoAttackStatus], None]]:
    """What to call after each pass: nothing, the user's function, or a bar on the terminal."""
    if not progress:
        yield lambda _status: None
    elif callable(progress):
        yield progress
    else:
        from paretune.runs.progress import bars

        with bars() as shown:
            task = shown.add_task("AutoAttack", total=None, note="")
            yield lambda status: shown.update(
                task, completed=status.passes, total=status.total, note=str(status)
            )
