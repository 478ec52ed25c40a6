"""The page of ``paretune watch`` in a real browser: progress and frontiers follow the sweep by themselves."""

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from paretune.runs.store import RunWriter
from paretune.watch import reporting, watching
from tests.contracts.test_report_browser import HOSTILE, chromium
from tests.synthetic import STRATEGIES, Strategy, write_run

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser


def begin(path: Path, name: str, seed: int, steps: int) -> None:
    RunWriter(
        path,
        {"task": "digits", "strategy": name, "strategy_config": name, "seed": seed, "steps": 160},
    )
    with open(path / "log.jsonl", "a") as file:
        for step in range(1, steps + 1):
            file.write(json.dumps({"step": step, "epsilon": 4 / 255, "loss": 2.3 - step / 100}) + "\n")


def fill(root: Path) -> None:
    """A sweep under way: finished, running, broken and waiting runs, one with a hostile name."""
    for number, strategy in enumerate(STRATEGIES[:2]):
        write_run(root / f"{number}-seed0", strategy, steps=160)
    write_run(root / "2-seed0", STRATEGIES[2], points=3, steps=160, finish=False)
    begin(root / "2-seed1", HOSTILE, 1, 42)
    broken = write_run(root / "3-seed0", STRATEGIES[3], points=1, steps=160)
    (broken / "config.json").write_text("{")
    waiting = {f"4-seed{seed}": {"strategy": "Compacter(n=2)", "seed": seed} for seed in (0, 1)}
    (root / "sweep.json").write_text(json.dumps({"runs": waiting}))


@pytest.mark.parametrize(
    ("width", "scheme"), [(1440, "light"), pytest.param(360, "dark", marks=pytest.mark.slow)]
)
def test_progress_and_frontiers_follow_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, scheme: str
) -> None:
    monkeypatch.setattr(reporting, "_SHARE", 1)  # there is no training that needs the processor
    fill(tmp_path)
    with watching(tmp_path, every=0.5) as server, sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"]
        )
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        said: list[str] = []
        asked: list[str] = []
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)

        def refuse(route: Any) -> None:
            asked.append(route.request.url)
            route.abort()

        context.route(re.compile(f"^(?!{re.escape(server.url)}|data:)"), refuse)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(server.url)

        headline = page.locator("#headline")
        sync_api.expect(headline).to_contain_text("2 of 7 runs done, 2 running, 2 waiting, 1 damaged")
        rows = page.locator("#runs tr")
        assert rows.count() == 7
        running = page.locator("tr[data-run='2-seed1']")
        assert HOSTILE in running.inner_text()
        assert "42 / 160" in running.inner_text()
        assert "4/255" in running.inner_text()
        assert page.locator("script").count() == 1
        assert "is not JSON" in page.locator("tr[data-run='3-seed0']").inner_text()

        first = page.locator("iframe[data-version='1']")
        first.wait_for(timeout=60_000)
        report = page.frame_locator("iframe:not(.loading)")
        sync_api.expect(report.locator("#frontier-0 .stairs_marks path")).to_have_count(3)
        height = first.bounding_box()["height"]
        assert height > 900  # the whole report, without a scroll bar of its own

        # The sweep goes on: a waiting run begins and has points at once.
        write_run(tmp_path / "4-seed0", Strategy("Compacter(n=2)", "Compacter(n=2)", 0.1, 10_000), steps=160)
        sync_api.expect(headline).to_contain_text("3 of 7 runs done, 2 running, 1 waiting", timeout=60_000)
        page.locator("iframe[data-version='2']").wait_for(timeout=60_000)
        sync_api.expect(report.locator("#frontier-0 .stairs_marks path")).to_have_count(4)
        assert page.locator("iframe").count() == 1
        report.locator(".pick", has_text="Compacter(n=2)").first.click()
        sync_api.expect(report.locator(".pick[aria-pressed=true]").first).to_be_attached(timeout=60_000)

        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert said == []
        assert asked == []

        server.shutdown()
        thread.join()
        server.socket.close()
        sync_api.expect(page.locator("#trouble")).to_contain_text("No answer", timeout=20_000)
        browser.close()
