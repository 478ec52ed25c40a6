"""The section out of distribution: planes, volumes, slopes and corruptions, in pictures and in tables."""

from pathlib import Path
from typing import Any

import pytest

import paretune as pt
from paretune.report import report_html, write_report
from tests.synthetic import ATTACK, STRATEGIES, Strategy, There, corruptions, write_run, write_runs
from tests.unit.report.reading import Page

KINDS = ("fog", "glass_blur", "snow")
THERE = {**corruptions(KINDS), "art": There(0.6, None, 80)}
PLANES = ("plane-clean-robust-0", "plane-clean-shifted-0", "plane-robust-shifted-0")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    place = tmp_path_factory.mktemp("shifted")
    write_runs(place / "runs", STRATEGIES[:3], points=6, elsewhere=THERE)
    return Page(write_report(place / "runs", place / "page.html", resamples=200))


def section(text: str) -> str:
    return text.split('aria-labelledby="elsewhere">')[1].split("</section>")[0]


def fields(spec: dict[str, Any]) -> set[str]:
    return {spec["encoding"][axis]["field"] for axis in ("x", "y")}


def test_each_pair_of_accuracies_has_a_plane_with_the_chosen_checkpoints(page: Page) -> None:
    for place in PLANES:
        spec = page.plots[place]
        _, x, y, _ = place.split("-")
        assert fields(spec) == {x, y}
        points = spec["datasets"]["points"]
        assert points
        assert all(point["chosen"] for point in points)
        assert {point["strategy"] for point in points} == {"LoRA", "Compacter", "BitFit"}
        assert len({stair["line"] for stair in spec["datasets"]["stairs"]}) == 6
        assert spec["description"]
    assert {attributes.get("id") for attributes in page.tags("div")} >= {*PLANES, "course-clean-0"}


def test_staircases_are_fronts_in_their_plane(page: Page) -> None:
    spec = page.plots["plane-robust-shifted-0"]
    lines: dict[str, list[tuple[float, float]]] = {}
    for stair in spec["datasets"]["stairs"]:
        lines.setdefault(stair["line"], []).append((stair["x"], stair["y"]))
    for corners in lines.values():
        (left, first), *inside, (right, last) = corners
        assert (left, last) == (0.0, 0.0)
        assert [x for x, _ in inside] == sorted(x for x, _ in inside)
        assert [y for _, y in inside] == sorted((y for _, y in inside), reverse=True)
        assert (first, right) == (inside[0][1], inside[-1][0])


def test_courses_have_all_points_and_lines_of_the_slopes(page: Page, tmp_path: Path) -> None:
    spec = page.plots["course-clean-0"]
    assert len(spec["datasets"]["points"]) == 3 * 2 * 6
    lines: dict[str, list[dict[str, float]]] = {}
    for end in spec["datasets"]["lines"]:
        lines.setdefault(end["strategy"], []).append(end)
    write_runs(tmp_path, STRATEGIES[:3], points=6, elsewhere=THERE)
    (condition,) = pt.compare(tmp_path, resamples=200).conditions
    for slope in condition.slopes:
        if slope.accuracy == "clean":
            start, end = lines[slope.strategy]
            risen = (end["y"] - start["y"]) / (end["x"] - start["x"])
            assert risen == pytest.approx(slope.slope, abs=0.01)
            assert f"{slope.slope:.2f}" in page.text


def test_volumes_are_told_with_what_they_do_not_show(page: Page) -> None:
    text = section(page.source)
    assert "<strong>Volume</strong> takes accuracy on shifted images" in page.source
    assert "has the largest volume, 0." in text
    for words in (
        "digits, clean, robust and shifted, ",
        "Difference of volumes",
        "chooses nothing",
        "They do not say that one makes the other",
        "The volume starts at clean 0%, robust 0%, shifted 0%",
        "Slope on clean",
    ):
        assert words in text


def test_a_heat_map_has_a_cell_for_each_strategy_corruption_and_severity(page: Page) -> None:
    spec = page.plots["corruptions-clean-0"]
    cells = spec["datasets"]["cells"]
    assert len(cells) == 3 * 3 * 5
    assert {cell["kind"] for cell in cells} == {*KINDS}
    of_one = [
        (cell["left"], cell["severity"])
        for cell in cells
        if (cell["strategy"], cell["kind"]) == ("LoRA", "fog")
    ]
    assert [severity for _, severity in sorted(of_one)] == [1, 2, 3, 4, 5]
    places = {(cell["left"], cell["kind"]) for cell in cells}
    assert len(places) == len(cells)  # none hides another
    # As many names as strategies, as the library thins what is more than the count of ticks.
    assert spec["encoding"]["x"]["axis"]["tickCount"] == len(spec["encoding"]["x"]["axis"]["values"]) == 3
    text = section(page.source)
    assert "15 corruptions" in text
    assert "art (80)" in text
    assert "fog 3 (" not in text  # no column for each of them
    for severity in range(1, 6):
        assert f"Severity {severity}<" in text
    assert ">Worst corruption<" in text


def test_severities_are_means_over_corruptions(tmp_path: Path) -> None:
    write_run(tmp_path / "0", STRATEGIES[0], points=2, elsewhere=corruptions(("fog", "snow"), (2, 4)))
    (condition,) = pt.compare(tmp_path, resamples=100).conditions
    places = {name: place[0] for name, place in condition.elsewhere[0].places.items()}
    text = section(report_html(tmp_path, resamples=100))
    for severity in (2, 4):
        mean = (places[f"fog {severity}"] + places[f"snow {severity}"]) / 2
        assert f"<td>{mean:.1%}</td>" in text
    kind = min(("fog", "snow"), key=lambda name: places[f"{name} 2"] + places[f"{name} 4"])
    assert f"{kind}: {(places[f'{kind} 2'] + places[f'{kind} 4']) / 2:.1%}" in text
    assert "2 cells of a strategy are the severities" in text


def test_what_decides_is_what_is_recommended_at_the_top(tmp_path: Path) -> None:
    """LoRA loses by area, and wins by volume as it alone keeps its accuracy elsewhere."""
    for number, strategy in enumerate(STRATEGIES[:2]):
        keeps = 0.95 if strategy.name == "LoRA" else 0.5
        worse = Strategy(strategy.name, strategy.config, 0.0 if keeps > 0.9 else 0.1, strategy.parameters)
        write_run(tmp_path / f"{number}", worse, points=5, elsewhere={"fog 1": There(keeps, "Grey()")})
    by_area, by_volume = (report_html(tmp_path, resamples=200, by=by) for by in ("area", "volume"))
    for text, name, quantity in ((by_area, "Compacter", "area"), (by_volume, "LoRA", "volume")):
        top = text.split('<div class="verdict">')[1].split("</div>")[0]
        assert f"<strong>{name}</strong>" in top
        assert f"{name} has the largest {quantity}, 0." in top
        assert f"largest true {quantity} is that of {name}" in top
        assert f"{name}&nbsp;★" in text


def test_runs_without_anything_shifted_have_no_section(tmp_path: Path) -> None:
    write_run(tmp_path / "0", STRATEGIES[0], points=3)
    text = report_html(tmp_path, resamples=100)
    assert 'aria-labelledby="elsewhere"' not in text
    assert "plane-clean-robust" not in text
    assert "<strong>Volume</strong>" not in text


def test_points_measured_elsewhere_now_and_then_have_no_planes(tmp_path: Path) -> None:
    """A run that measured other images than the others: its accuracies are told, but no volumes."""
    write_run(tmp_path / "0", STRATEGIES[0], points=3, elsewhere={"art": There(0.7, None, 1)})
    text = report_html(tmp_path, resamples=100)
    assert "plane-clean-robust" not in text
    assert 'aria-labelledby="elsewhere"' in text


def test_every_condition_has_its_own(tmp_path: Path) -> None:
    attacks = ((ATTACK, "Linf", 4 / 255, 1.0), ("PGD(L2(0.5))", "L2", 0.5, 0.8))
    write_runs(
        tmp_path, STRATEGIES[:2], seeds=(0,), points=4, attacks=attacks, elsewhere=corruptions(("fog",))
    )
    text = report_html(tmp_path, resamples=100)
    places = {f'id="plane-clean-shifted-{number}"' for number in range(2)}
    assert all(place in text for place in places)
    assert section(text).count('id="corruptions-clean-') == 1  # clean accuracy is one under all attacks


def test_names_are_text(tmp_path: Path) -> None:
    bad = Strategy("<b>LoRA", "LoRA()", 0.0, 5)
    there = {"<i>art": There(0.7, None, 60), **corruptions(("fog",))}
    write_run(tmp_path / "0", bad, points=3, elsewhere=there)
    text = section(report_html(tmp_path, resamples=100))
    assert "<b>" not in text
    assert "<i>" not in text


def test_many_corruptions_make_no_large_page(page: Page) -> None:
    assert len(page.source) < 1_500_000
