"""The page that shows a sweep: right while runs grow, break and go; and shut to everyone but this machine's browser."""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paretune.frontiers import comparing
from paretune.report import report_html
from paretune.runs.rows import read_config
from paretune.runs.store import Run, RunWriter, load_runs
from paretune.strategies import BitFit, LoRA
from paretune.sweeps.config import CompareConfig, Seeds, Strategies
from paretune.sweeps.grid import announce, directory_name
from paretune.watch import WatchServer, progress, reporting, watching
from paretune.watch.progress import MOST, Watcher
from paretune.watch.reporting import Reporter
from tests.synthetic import STRATEGIES, write_run


def build(runs: list[Run]) -> str:
    """A report that is quick to make and says what it is made of."""
    points = sum(len(run.points) for run in runs)
    return f"<!doctype html><title>report</title><body><p>{len(runs)} runs, {points} points</p></body>"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WatchServer]:
    with watching(tmp_path, every=0.05, build=build) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


class Answer:
    """What the server said to one request, given as raw as a browser or an attacker may send it."""

    def __init__(
        self, server: WatchServer, path: str, method: str = "GET", host: str | None = "localhost"
    ) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
        connection.putrequest(method, path, skip_host=True)
        if host is not None:
            connection.putheader("Host", host)
        connection.endheaders()
        answer = connection.getresponse()
        self.status, self.headers, self.body = answer.status, answer.headers, answer.read()
        connection.close()

    def json(self) -> Any:
        return json.loads(self.body)


def eventually(condition: Callable[[], Any]) -> Any:
    """The first true answer; the test's own limit ends what never comes true."""
    while not (value := condition()):
        time.sleep(0.02)
    return value


def log_steps(run: Path, *steps: int) -> None:
    with open(run / "log.jsonl", "a") as file:
        for step in steps:
            row = {"step": step, "epsilon": 4 / 255 * step / 100, "loss": 2.0 - step / 100, "accuracy": 0.5}
            file.write(json.dumps(row) + "\n")


def begin(path: Path, **config: Any) -> RunWriter:
    return RunWriter(
        path,
        {
            "task": "digits",
            "strategy": "LoRA",
            "strategy_config": "LoRA()",
            "seed": 3,
            "steps": 100,
            **config,
        },
    )


def test_an_empty_directory_waits_and_then_shows_the_run_as_it_grows(server, tmp_path) -> None:
    assert Answer(server, "/status.json").json()["runs"] == []
    assert Answer(server, "/report.html").status == 404
    begin(tmp_path / "a")
    log_steps(tmp_path / "a", 1, 2)

    def first() -> Any:
        runs = Answer(server, "/status.json").json()["runs"]
        return runs[0] if runs else None

    run = eventually(first)
    assert (run["name"], run["state"], run["strategy"], run["seed"]) == ("a", "running", "LoRA", 3)
    assert (run["step"], run["total"]) == (2, 100)
    assert (run["epsilon"], run["loss"]) == (4 / 255 * 0.02, 1.98)
    log_steps(tmp_path / "a", 3)
    eventually(lambda: first()["step"] == 3)
    assert first()["seconds_left"] > 0


def test_the_report_follows_the_points(server, tmp_path) -> None:
    def report() -> str:
        return Answer(server, "/report.html").body.decode()

    write_run(tmp_path / "a", STRATEGIES[0], points=2)
    eventually(lambda: "1 runs, 2 points" in report())
    version = Answer(server, "/status.json").json()["report"]["version"]
    write_run(tmp_path / "b", STRATEGIES[1], points=3)
    eventually(lambda: "2 runs, 5 points" in report())
    assert Answer(server, "/status.json").json()["report"]["version"] > version
    shutil.rmtree(tmp_path / "a")
    eventually(lambda: "1 runs, 3 points" in report())


def test_everything_that_a_run_says_is_shown(tmp_path) -> None:
    attacks = (
        ("PGD(Linf(0.01), steps=20)", "Linf", 0.01, 1.0),
        ("PGD(Linf(0.02), steps=20)", "Linf", 0.02, 0.5),
    )
    write_run(tmp_path / "a", STRATEGIES[0], points=4, attacks=attacks, steps=80)
    write_run(tmp_path / "b", STRATEGIES[1], points=2, steps=80, finish=False)
    (tmp_path / "sweep.json").write_text(
        json.dumps({"runs": {"b": {}, "c": {"strategy": "BitFit()", "seed": 1}}})
    )
    progress = Watcher(tmp_path).look()
    a, b, c = progress.runs
    last = [json.loads(line) for line in (tmp_path / "a/points.jsonl").read_text().splitlines()][-2:]
    assert (a.state, a.step, a.total, a.points, a.seconds_left) == ("done", 80, 80, 4, None)
    assert a.clean == last[0]["clean_select"]
    assert a.robust == min(row["robust_select"] for row in last)
    assert (b.state, b.step, b.points) == ("running", 40, 2)
    assert b.seconds_left == pytest.approx(40 * 6.0 / 40)  # 6 seconds of training for 40 steps
    assert (c.state, c.name, c.strategy, c.seed) == ("waiting", "c", "BitFit()", 1)
    # b has 6 s left, and the 80 steps of c, at the mean speed of both, follow on the one worker that is at work
    assert progress.seconds_left == pytest.approx(6 + 80 * (12 / 80 + 6 / 40) / 2)


def test_a_sweep_says_which_runs_will_come(tmp_path) -> None:
    """Also when a second sweep in the same directory adds some."""
    configs = CompareConfig(strategies=Strategies((BitFit(), LoRA(rank=2))), seeds=Seeds((0, 1))).runs()
    announce(tmp_path, configs[:2])
    announce(tmp_path, configs[1:])
    waiting = Watcher(tmp_path).look().runs
    assert {run.name for run in waiting} == {directory_name(config) for config in configs}
    assert {(run.state, run.strategy, run.seed) for run in waiting} == {
        ("waiting", text, seed) for text in ("BitFit", "LoRA(rank=2)") for seed in (0, 1)
    }


def test_a_run_directory_itself_can_be_watched(tmp_path) -> None:
    write_run(tmp_path / "mine", STRATEGIES[0], points=1)
    (run,) = Watcher(tmp_path / "mine").look().runs
    assert (run.name, run.state) == ("mine", "done")


def test_torn_lines_and_resumed_runs_are_read_right(tmp_path) -> None:
    watcher = Watcher(tmp_path)
    begin(tmp_path / "a")
    log_steps(tmp_path / "a", 1, 2, 3)
    with open(tmp_path / "a/log.jsonl", "a") as file:
        file.write('{"step": 4, "eps')
    assert watcher.look().runs[0].step == 3
    (tmp_path / "a/log.jsonl").write_text("")  # resumed from before its first checkpoint
    log_steps(tmp_path / "a", 1)
    assert watcher.look().runs[0].step == 1


def test_a_damaged_run_is_named_and_the_others_are_shown(server, tmp_path) -> None:
    write_run(tmp_path / "good", STRATEGIES[0], points=1)
    write_run(tmp_path / "bad", STRATEGIES[1], points=1)
    with open(tmp_path / "bad/points.jsonl", "a") as file:
        file.write("{}\n")
    write_run(tmp_path / "worse", STRATEGIES[2], points=1)
    (tmp_path / "worse/config.json").write_text('{"schema": 99}')

    def status() -> Any:
        found = Answer(server, "/status.json").json()
        return found if "worse" in str(found["report"]["problem"]) else None

    found = eventually(status)
    assert "1 runs, 1 points" in Answer(server, "/report.html").body.decode()
    assert re.search(r"bad is left out: .*points.jsonl, line 2 lacks", found["report"]["problem"])
    states = {run["name"]: run for run in found["runs"]}
    assert states["good"]["state"] == "done"
    assert states["worse"]["state"] == "damaged"
    assert "schema 99" in states["worse"]["problem"]


def test_a_run_that_goes_while_it_is_read_breaks_nothing(tmp_path) -> None:
    """Runs appear and vanish under both readers all the time; neither raises, and both are right in the end."""
    stop = threading.Event()

    def stir() -> None:
        number = 0
        while not stop.is_set():
            write_run(tmp_path / f"x{number % 3}", STRATEGIES[number % 4], seed=number, points=1, examples=8)
            shutil.rmtree(tmp_path / f"x{(number + 1) % 3}", ignore_errors=True)
            number += 1

    thread = threading.Thread(target=stir)
    thread.start()
    watcher, reporter = Watcher(tmp_path), Reporter(tmp_path, 1.0, build)
    try:
        for _ in range(100):
            for run in watcher.look().runs:
                half_gone = any(said in str(run.problem) for said in ("No such file", "rows were lost"))
                assert run.state in ("running", "done") or half_gone, run
            reporter.refresh()
    finally:
        stop.set()
        thread.join()
    for path in tmp_path.glob("x*"):
        shutil.rmtree(path)
    write_run(tmp_path / "last", STRATEGIES[0], points=1)
    assert [run.name for run in watcher.look().runs] == ["last"]
    assert reporter.refresh()
    assert b"1 runs, 1 points" in (reporter.html or b"")


def test_a_report_that_fails_says_why_and_keeps_the_last_good_one(tmp_path) -> None:
    fail = False

    class Panic(BaseException):
        pass

    def fragile(runs: list[Run]) -> str:
        if fail:
            raise Panic("no ink")
        return build(runs)

    reporter = Reporter(tmp_path, 1.0, fragile)
    assert not reporter.refresh()
    write_run(tmp_path / "a", STRATEGIES[0], points=1)
    assert reporter.refresh()
    assert not reporter.refresh()  # nothing changed
    good, fail = reporter.html, True
    write_run(tmp_path / "b", STRATEGIES[1], points=1)
    assert not reporter.refresh()
    assert (reporter.html, reporter.version, reporter.problem) == (good, 1, "Panic: no ink")
    fail = False
    write_run(tmp_path / "c", STRATEGIES[2], points=1)
    assert reporter.refresh()
    assert (reporter.version, reporter.problem) == (2, None)


def test_steps_between_points_make_no_new_report(tmp_path) -> None:
    write_run(tmp_path / "a", STRATEGIES[0], points=1, finish=False)
    reporter = Reporter(tmp_path, 1.0, build)
    assert reporter.refresh()
    log_steps(tmp_path / "a", 1, 2)
    assert not reporter.refresh()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("LOCALHOST:1", 200),
        ("evil.example", 403),
        ("evil.example:80", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
        (None, 403),
    ],
)
def test_only_names_of_this_machine_are_answered(server, host: str | None, status: int) -> None:
    for path in ("/", "/status.json", "/watch.js"):
        assert Answer(server, path, host=host).status == status


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml",
        "/%2e%2e/pyproject.toml",
        "//etc/passwd",
        "/etc/passwd",
        "/page.html",
        "/server.py",
        "/config.json",
        "/a/config.json",
        "/report.html/../../secret",
        "http://localhost/etc/passwd",
    ],
)
def test_there_is_nothing_but_the_routes(server, tmp_path, path: str) -> None:
    write_run(tmp_path / "a", STRATEGIES[0], points=1)
    assert Answer(server, path).status == 404


def test_methods_other_than_get_and_head_are_refused(server) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        answer = Answer(server, "/", method)
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert Answer(server, "/", "BREW").status == 501
    head, get = Answer(server, "/", "HEAD"), Answer(server, "/")
    assert head.body == b""
    assert head.headers["Content-Length"] == str(len(get.body))


def test_answers_forbid_what_they_do_not_need(server, tmp_path) -> None:
    write_run(tmp_path / "a", STRATEGIES[0], points=1)
    eventually(lambda: Answer(server, "/report.html").status == 200)
    for path in ("/", "/watch.js", "/watch.css", "/status.json", "/report.html", "/nothing"):
        headers = Answer(server, path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert ("unsafe" in policy) == (path == "/report.html")
        assert ("connect-src" in policy) == (path != "/report.html")
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in headers
        assert headers["Server"] == "paretune"


def test_the_server_listens_on_loopback_only(server) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_address[1]}/"


def test_wrong_arguments_are_named(server, tmp_path) -> None:
    port = server.server_address[1]
    with pytest.raises(OSError, match=f"port {port} is in use.*--port 0"), watching(tmp_path, port=port):
        pass
    with (
        pytest.raises(NotADirectoryError, match="nowhere is not a directory"),
        watching(tmp_path / "nowhere"),
    ):
        pass
    with (
        pytest.raises(ValueError, match="every must be a finite number above 0"),
        watching(tmp_path, every=0),
    ):
        pass
    with (
        pytest.raises(ValueError, match="every must be a finite number above 0"),
        watching(tmp_path, every=float("inf")),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"port must be in \[0, 65535\], got 70000"),
        watching(tmp_path, port=70000),
    ):
        pass


@pytest.mark.slow
def test_the_command_serves_until_interrupted(tmp_path) -> None:
    """Ctrl-C ends it with exit code 0 and nothing on standard error; the directory is as it was."""
    begin(tmp_path / "a")
    before = sorted(tmp_path.rglob("*"))
    code = (
        "import signal, sys; from paretune.commands.cli import main; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "  # a job in the background ignores Ctrl-C
        "sys.exit(main(['watch', sys.argv[1], '--every', '0.2']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout
        said = process.stdout.readline()
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", said)[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/status.json")
        assert json.loads(connection.getresponse().read())["runs"][0]["name"] == "a"
        connection.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        assert process.stderr
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()
    assert sorted(tmp_path.rglob("*")) == before


def test_of_many_runs_the_answer_lists_some_and_counts_all(tmp_path: Path) -> None:
    small = {"points": 1, "examples": 20, "examples_select": 10}
    for number in range(MOST + 15):
        done = number >= 5
        write_run(tmp_path / f"run{number:03}", STRATEGIES[0], number, finish=done, steps=20, **small)
    (tmp_path / f"run{MOST:03}" / "config.json").write_text("{")
    told = Watcher(tmp_path).look().to_dict()
    states = [run["state"] for run in told["runs"]]
    assert told["counts"] == {"damaged": 1, "running": 5, "waiting": 0, "done": MOST + 9}
    assert (len(states), states.count("damaged"), states.count("running")) == (MOST, 1, 5)
    assert [run["name"] for run in told["runs"]] == sorted(run["name"] for run in told["runs"])
    assert (told["steps"], told["steps_total"]) == (
        20 * (MOST + 14),
        20 * (MOST + 15),
    )  # none of the damaged one
    assert told["measured"]
    assert len(json.dumps(told)) < 100_000


def test_finished_runs_are_read_once_until_a_file_of_theirs_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        write_run(tmp_path / str(number), STRATEGIES[0], number, finish=number > 0, points=2)
    reads: list[str] = []

    def counted(path: Path) -> dict[str, Any]:
        reads.append(path.name)
        return read_config(path)

    monkeypatch.setattr(progress, "read_config", counted)
    watcher = Watcher(tmp_path)
    first = watcher.look()
    assert sorted(reads) == [*"012345"]
    reads.clear()
    again = watcher.look()
    assert reads == ["0"]
    assert [run.state for run in again.runs] == [run.state for run in first.runs]
    assert all(
        old.quiet_seconds <= new.quiet_seconds
        for old, new in zip(first.runs[1:], again.runs[1:], strict=True)
    )
    points = tmp_path / "3" / "points.jsonl"
    points.write_text(points.read_text().splitlines(keepends=True)[0])
    reads.clear()
    assert [run.state for run in watcher.look().runs][3] == "damaged"
    assert sorted(reads) == ["0", "3"]


def test_a_new_report_reads_and_compares_only_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for task in ("birds", "cars", "planes"):
        for seed in (0, 1):
            write_run(tmp_path / f"{task}-{seed}", STRATEGIES[0], seed, task=task, points=2, examples=40)
    write_run(tmp_path / "birds-2", STRATEGIES[0], 2, task="birds", points=1, examples=40, finish=False)
    compared: list[str] = []
    read: list[str] = []

    def compare_one(rows: Any, *rest: Any) -> Any:
        compared.append(str(rows["task"].iloc[0]))
        return of_one(rows, *rest)

    def load(path: Path) -> list[Run]:
        read.append(path.name)
        return load_runs(path)

    of_one = comparing._compare_one
    monkeypatch.setattr(comparing, "_compare_one", compare_one)
    monkeypatch.setattr(reporting, "load_runs", load)
    reporter = Reporter(tmp_path, 5)
    assert reporter.refresh()
    assert (sorted(compared), len(read)) == (["birds", "cars", "planes"], 7)
    compared.clear(), read.clear()
    write_run(tmp_path / "birds-2", STRATEGIES[0], 2, task="birds", points=2, examples=40, finish=False)
    assert reporter.refresh()
    assert (compared, read) == (["birds"], ["birds-2"])
    assert reporter.html == report_html(tmp_path).encode()
    compared.clear(), read.clear()
    write_run(tmp_path / "new", STRATEGIES[2], 0, task="cars", points=2, examples=40)
    assert reporter.refresh()
    assert (compared, read) == (["cars"], ["new"])
