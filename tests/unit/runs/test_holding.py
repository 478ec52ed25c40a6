"""Machines that work in one directory of a store, which has no locks."""

import json
import time
from typing import Any

import pytest

from paretune.runs import holding
from paretune.runs.holding import HOLDER, held, holder
from paretune.runs.objects import Objects
from tests.buckets import memory


def test_a_second_machine_is_told_who_the_first_one_is_until_that_ends() -> None:
    objects = Objects(memory())
    with held(objects, "run", "one"):
        told = json.loads(objects.read(f"run/{HOLDER}") or b"")
        with (
            pytest.raises(
                BlockingIOError, match=f"run is in use by process {told['process']} on {told['host']}. Wait"
            ),
            held(objects, "run", "two"),
        ):
            pass
        assert holder(objects, f"run/{HOLDER}", "one") is None
        assert holder(objects, f"run/{HOLDER}", "two") == f"process {told['process']} on {told['host']}"
    with held(objects, "run", "two"):
        pass
    assert objects.read(f"run/{HOLDER}") is None


def left_by(objects: Objects, **changes: Any) -> None:
    told = {"machine": "one", "token": "t", "host": "there", "process": 7, "time": time.time()}
    objects.write(HOLDER, json.dumps(told | changes).encode())


def test_one_that_was_killed_counts_for_nothing_after_minutes_and_on_its_own_machine_at_once() -> None:
    objects = Objects(memory())
    left_by(objects, time=time.time() - 170)
    with pytest.raises(BlockingIOError, match="process 7 on there"), held(objects, "", "two"):
        pass
    with held(objects, "", "one"):
        pass
    left_by(objects, time=time.time() - 190)
    with held(objects, "", "two"):
        pass


def test_it_goes_on_saying_that_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "_REFRESHED", 0.02)
    objects = Objects(memory())
    with held(objects, "", "one") as hold:
        told = json.loads(objects.read(HOLDER) or b"")
        end = time.monotonic() + 30
        while json.loads(objects.read(HOLDER) or b"")["time"] == told["time"]:
            assert time.monotonic() < end
            time.sleep(0.02)
        hold.check()


def test_one_that_was_taken_over_stops_and_leaves_the_other_one_alone() -> None:
    objects = Objects(memory())
    with held(objects, "", "one") as hold:
        left_by(objects, machine="two")
        with pytest.raises(BlockingIOError, match="was taken over by process 7 on there"):
            hold.check()
    assert holder(objects, HOLDER, "one") == "process 7 on there"


def test_of_two_at_once_the_earlier_one_sees_the_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = Objects(memory())
    refresh = holding.Hold.refresh

    def late(hold: holding.Hold) -> None:
        refresh(hold)
        left_by(objects, machine="two")

    monkeypatch.setattr(holding.Hold, "refresh", late)
    with pytest.raises(BlockingIOError, match="process 7 on there"), held(objects, "", "one"):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"machine": 1}', b"\xff"])
def test_what_nobody_of_us_has_written_holds_nothing(content: bytes) -> None:
    objects = Objects(memory())
    objects.write(HOLDER, content)
    with held(objects, "", "one"):
        pass
