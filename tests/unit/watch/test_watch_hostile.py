"""The page that shows a sweep stays up, whatever is in the directory and whoever calls."""

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paretune.runs.store import load_runs
from paretune.watch import WatchServer, watching
from paretune.watch.server import _MOST
from tests.synthetic import STRATEGIES, write_run

HUGE = "1" + "0" * 400
DEEP = "[" * 100_000
CONFIG = '{"schema": 1, "task": "t", "strategy": "s", "strategy_config": "c", "seed": %s, "steps": %s}'


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WatchServer]:
    write_run(tmp_path / "good", STRATEGIES[0], points=1, examples=60)
    with watching(tmp_path, every=0.05, build=lambda runs: f"<body>{len(runs)} runs</body>") as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def answer(server: WatchServer) -> dict[str, Any]:
    """The status, which must be JSON as browsers read it."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    connection.request("GET", "/status.json", headers={"Host": "localhost"})
    got = connection.getresponse()
    assert got.status == 200

    def never(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    status: dict[str, Any] = json.loads(got.read(), parse_constant=never)
    connection.close()
    return status


def config(text: str | bytes) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        (run / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())

    return write


def log(line: str) -> Callable[[Path], None]:
    return lambda run: (run / "log.jsonl").write_text(line + "\n") and None


def point(field: str, value: str) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        lines = [json.loads(line) for line in (run / "points.jsonl").read_text().splitlines()]
        lines[-1][field] = "HERE"
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run / "points.jsonl").write_text(text.replace('"HERE"', value))

    return write


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        *(
            (config(CONFIG % (value, 80)), "config.json")
            for value in ("NaN", "1e400", "[1]", HUGE, "0.5", '"x"')
        ),
        *(
            (config(CONFIG % (0, value)), "config.json")
            for value in ("NaN", "-Infinity", "{}", HUGE, "true", DEEP)
        ),
        (config(b'{"schema": 1, "task": "\xe9"}'), "config.json"),
        (config("[]"), "config.json"),
        *((log(f'{{"step": {value}}}'), "log.jsonl") for value in ("NaN", "1e400", HUGE, "null", '"7"')),
        *(
            (point(field, value), "points.jsonl")
            for field in ("step", "clean_select", "train_seconds", "examples", "seed")
            for value in ("NaN", "1e400", HUGE, "null", "[]")
        ),
    ],
)
def test_a_damaged_file_is_named_and_the_others_are_shown(
    server: WatchServer, tmp_path: Path, damage: Callable[[Path], None], file: str
) -> None:
    write_run(tmp_path / "bad", STRATEGIES[1], points=2, examples=60, steps=80, finish=False)
    damage(tmp_path / "bad")
    for _ in range(2):  # it is named again
        server._looked = float("-inf")
        runs = {run["name"]: run for run in answer(server)["runs"]}
        assert runs["good"]["state"] == "done"
        assert runs["bad"]["state"] == "damaged"
        assert file in runs["bad"]["problem"]


@pytest.mark.parametrize("value", ["NaN", "1e400", HUGE, '"x"', "[1]", "true", "null"])
def test_what_only_decorates_is_left_out(server: WatchServer, tmp_path: Path, value: str) -> None:
    """The loss of a run that diverged is NaN; it goes on."""
    write_run(tmp_path / "odd", STRATEGIES[1], points=2, examples=60, steps=80, finish=False)
    log(f'{{"step": 41, "loss": {value}, "epsilon": {value}}}')(tmp_path / "odd")
    run = next(run for run in answer(server)["runs"] if run["name"] == "odd")
    assert (run["state"], run["step"]) == ("running", 41)
    assert run["loss"] in (None, 1.0)  # true is 1 in Python


@pytest.mark.parametrize(
    "text", ['{"runs": {"a": {"seed": [NaN]}}}', '{"runs": {"a": {"seed": 1e400}}}', DEEP, "\ud800"]
)
def test_a_damaged_announcement_is_named(server: WatchServer, tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_bytes(text.encode(errors="surrogatepass"))
    problem = next(run["problem"] for run in answer(server)["runs"] if run["state"] == "damaged")
    assert "sweep.json" in problem


def test_a_file_that_is_mended_is_shown_again(server: WatchServer, tmp_path: Path) -> None:
    write_run(tmp_path / "bad", STRATEGIES[1], points=2, examples=60, steps=80, finish=False)
    whole = (tmp_path / "bad/points.jsonl").read_text()
    point("robust_select", "NaN")(tmp_path / "bad")
    assert {run["state"] for run in answer(server)["runs"]} == {"done", "damaged"}
    with open(tmp_path / "bad/points.jsonl", "w") as file:  # the same file, as an editor may save it
        file.write(whole)
    server._looked = float("-inf")
    run = next(run for run in answer(server)["runs"] if run["name"] == "bad")
    assert (run["state"], run["points"]) == ("running", 2)


def test_runs_with_numbers_that_no_table_holds_are_refused_by_name(tmp_path: Path) -> None:
    for field, value in (("examples", HUGE), ("seed", HUGE), ("epoch", "1e400"), ("robust", "NaN")):
        run = write_run(tmp_path / f"{field}", STRATEGIES[1], points=2, examples=60)
        point(field, value)(run)
        with pytest.raises(ValueError, match=rf"points.jsonl, line 2.* {field} "):
            load_runs(run)
    run = write_run(tmp_path / "config", STRATEGIES[1], points=1, examples=60)
    config(CONFIG % ("NaN", 80))(run)
    with pytest.raises(ValueError, match=r"config.json is not JSON: numbers must be finite; got NaN"):
        load_runs(run)


def test_a_look_that_fails_is_an_answer_and_not_the_end(
    server: WatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("no disk")

    monkeypatch.setattr(server.watcher, "look", fail)
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    connection.request("GET", "/status.json", headers={"Host": "localhost"})
    got = connection.getresponse()
    assert (got.status, got.read()) == (500, b"RuntimeError: no disk\n")
    connection.close()


def test_clients_that_wait_do_not_keep_others_out_and_threads_are_bounded(server: WatchServer) -> None:
    """Many connections that ask nothing, or only begin to: the oldest make room."""
    before = threading.active_count()
    idle = []
    for number in range(6 * _MOST):
        idle.append(socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=20))
        if number % 2:
            idle[-1].sendall(b"GET /status.json HTTP/1.1\r\nHost: local")
    for _ in range(5):
        assert {run["name"] for run in answer(server)["runs"]} == {"good"}
        assert threading.active_count() - before <= _MOST
    closed = 0
    for each in idle[:_MOST]:  # the oldest were closed, without an answer
        each.settimeout(20)
        closed += each.recv(1) == b""
        each.close()
    assert closed == _MOST
    for each in idle[_MOST:]:
        each.close()
    assert {run["name"] for run in answer(server)["runs"]} == {"good"}
