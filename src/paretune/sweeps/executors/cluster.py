"""Runs that others make: they are handed out, looked at in their directories, and handed out again where they are lost."""

import contextlib
import logging
import queue
import re
import time
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from paretune.runs.lock import alone
from paretune.runs.progress import Status
from paretune.sweeps.executors.base import Crew
from paretune.sweeps.executors.display import shown
from paretune.sweeps.executors.job import Job, Outcome, steps_done
from paretune.watch.progress import Watcher

log = logging.getLogger(__name__)

H = TypeVar("H", bound=Hashable)
_LOOK = 1.0  # seconds between two looks
# Runs that one look takes, of many those that follow the last ones: shared file systems are slow. Of a store it is one.
_LOOKED_AT = 50


class Lost(Exception):
    """What made a run has gone; the message says how, of which what comes after the first sentence is left out."""

    def __str__(self) -> str:
        return re.split(r"\.\s|\n", super().__str__().strip())[0].rstrip(".")


@dataclass
class _Hand:
    """A job that was handed out.

    Args:
        job: what to make.
        watcher: of its directory.
        step: up to which it was kept when it was handed out.
        lost: how often in a row it was lost without having come further.
    """

    job: Job
    watcher: Watcher
    step: float
    lost: int = 0


class Distant(Crew):
    """Machines that share a file system with this one, or an object store.

    Args:
        workers: how many runs are handed out at once, at most; None asks :meth:`places` again and again.
        threads: of each.
        retries: how often in a row a run may lose its worker without coming further.
    """

    def __init__(self, workers: int | None, threads: int, retries: int) -> None:
        super().__init__(workers or self.places(), threads)
        self.asked, self.retries = workers, retries

    @abstractmethod
    def places(self) -> int:
        """How many runs there is place for at once, now."""

    @abstractmethod
    def hand_out(self, jobs: Sequence[Job]) -> Sequence[Any]:
        """Let ``jobs`` be made; returns a handle for each, which can be hashed."""

    def withdraw(self, handles: Sequence[Any]) -> Sequence[Any]:
        """Take back what has not begun, after an error; returns the handles of that."""
        return ()

    @abstractmethod
    def ended(self, handles: Sequence[Any], seconds: float) -> Sequence[Any]:
        """Those of ``handles`` that have ended, waiting at most so long for one."""

    @abstractmethod
    def outcome(self, handle: Any) -> Outcome:
        """What came of one that has ended.

        Raises:
            Lost: who made it has gone.
            Exception: the work cannot be done at all.
        """

    def make(self, jobs: Sequence[Job], *, names: Sequence[str], progress: bool) -> None:
        """Hand out and take back."""
        for job in jobs:
            if (reason := job.stays_here()) is not None:
                raise ValueError(
                    f"the data or the model of {job.path.name} cannot be sent to other machines: {reason}"
                )
        messages: queue.Queue[Any] = queue.Queue()
        with shown(messages, names, finished=len(names) - len(jobs), enabled=progress):
            error = self._make([_begun(job) for job in jobs], messages)
        if error is not None:
            raise error

    def _make(self, waiting: list[_Hand], messages: "queue.Queue[Any]") -> Exception | None:
        """The first error, once all that was handed out has ended."""
        out: dict[Any, _Hand] = {}
        elsewhere: list[_Hand] = []  # at work for a process that was here before, which was killed
        first: Exception | None = None
        turn, looked = 0, 0.0
        while out or ((waiting or elsewhere) and first is None):
            if first is None and waiting:
                count = max(0, (self.asked or max(1, self.places())) - len(out))
                taking, waiting = waiting[:count], waiting[count:]
                taken = [hand for hand in taking if hand.job.in_use()]
                elsewhere += taken
                if free := [hand for hand in taking if hand not in taken]:
                    out |= zip(self.hand_out([hand.job for hand in free]), free, strict=True)
            if not out:
                time.sleep(_LOOK)
            for handle in self.ended([*out], _LOOK) if out else ():
                hand = out.pop(handle)
                try:
                    outcome = self.outcome(handle)
                except Lost as lost:
                    again = self._again(hand, lost)
                    if isinstance(again, _Hand):
                        waiting.insert(0, again)
                        continue
                    outcome = Outcome([], again)
                except Exception as error:
                    outcome = Outcome([], error)
                for record in outcome.records:
                    messages.put(record)
                if isinstance(outcome.error, BlockingIOError):
                    elsewhere.append(hand)
                    continue
                messages.put((hand.job.path.name, None))
                if outcome.error is not None and first is None:
                    first = outcome.error
                    for withdrawn in self.withdraw([*out]):
                        del out[withdrawn]
            if time.monotonic() - looked < _LOOK:
                continue
            for hand in [hand for hand in elsewhere if not hand.job.in_use()]:
                elsewhere.remove(hand)
                hand.job.fetch()
                if hand.job.finished:
                    messages.put((hand.job.path.name, None))
                else:
                    waiting.insert(0, hand)
            seen = [*out.values(), *elsewhere]
            turn = 0 if turn >= len(seen) else turn
            count = _LOOKED_AT if not seen or seen[0].job.stored is None else 1
            for hand in seen[turn : turn + count]:
                if (status := _status(hand)) is not None:
                    messages.put((hand.job.path.name, status))
            turn, looked = turn + count, time.monotonic()
        return first

    def _again(self, hand: _Hand, lost: Lost) -> "_Hand | Exception":
        """The job once more, or why not."""
        name = hand.job.path.name
        try:
            if hand.job.stored is not None:
                hand.job.stored.release()
                hand.job.fetch()
            step = steps_done(hand.job.path, hand.job.places)
        except (ValueError, OSError) as error:
            return error
        times = 1 if step > hand.step else hand.lost + 1
        if times > self.retries:
            return RuntimeError(
                f"{name} has lost its worker {times} times in a row without coming further than step {step:g}: {lost}. A "
                "run that takes more memory than there is ends like this: accumulate=2 (--accumulate 2) or fewer workers "
                "take less. What is finished is kept, and the same call goes on"
            )
        log.warning("%s has lost its worker (%s); it goes on from step %g on another one", name, lost, step)
        return replace(hand, step=step, lost=times)


def _begun(job: Job) -> _Hand:
    """``job`` to hand out; what is to start over does so here, once, so that a run that is lost goes on."""
    if not job.resume:
        job.forget()
        job = replace(job, resume=True)
    return _Hand(job, Watcher(job.path), steps_done(job.path, job.places))


def _status(hand: _Hand) -> Status | None:
    """How far the run of ``hand`` is by its files; of several tasks by those of the first."""
    with contextlib.suppress(OSError):  # of a store; it is for those who watch
        hand.job.glance()
    seen = [run for run in hand.watcher.look().runs if run.total]
    if not seen:
        return None
    run = seen[0]
    return Status(
        run.step,
        run.total or 0,
        run.epsilon or 0.0,
        float("nan") if run.loss is None else run.loss,
        0.0,
        run.clean,
        run.robust,
    )


@contextlib.contextmanager
def only_driver(out: Path) -> Iterator[None]:
    """Be the only process that hands out runs below ``out``.

    Raises:
        BlockingIOError: another one does; the message says who.
    """
    place = out / ".driver"
    try:
        with alone(place):
            yield
    finally:
        with contextlib.suppress(OSError):  # another one is there
            place.rmdir()


def needing(what: str, extra: str, load: Callable[[], Any]) -> Any:
    """What ``load`` imports.

    Raises:
        ImportError: with the line that installs it.
    """
    try:
        return load()
    except ImportError as error:
        raise ImportError(
            f"{what} needs a package that is missing ({error}): pip install 'paretune[{extra}]'"
        ) from None
