"""The section of a report about other domains: what is left there, in a table and in words."""

from pathlib import Path

from paretune.report import report_html
from tests.unit.frontiers.test_elsewhere import write

TRAINED = {"select": 18, "report": 32}


def section(path: Path) -> str:
    return (
        report_html(path, resamples=100)
        .split('<section class="card" aria-labelledby="elsewhere">')[1]
        .split("</section>")[0]
    )


def test_the_section_tells_what_is_left_elsewhere(tmp_path: Path) -> None:
    write(tmp_path / "0", "LoRA", 0, [TRAINED | {"a": 5, "b": 21}])
    write(tmp_path / "1", "BitFit", 0, [TRAINED | {"a": 10, "b": 30, "report": 30}])
    write(tmp_path / "2", "SSF", 0, [TRAINED | {"report": 20}])
    found = section(tmp_path)
    for text in ("Elsewhere (40)", "a (10)", "b (30)", "pets, clean", "pets, robust"):
        assert f">{text}" in found
    assert "LoRA is right on 65.0% of the images elsewhere, 15.0 points fewer than" in found
    assert "LoRA is right on 30.0% of the images elsewhere under attack, 10.0 points fewer than" in found
    assert "Not measured on these images: SSF." in found
    assert '<strong>65.0% <span class="small">49.5 – 77.9%</span></strong>' in found  # LoRA, 26 of 40
    assert '15.0 <span class="small">−' in found


def test_without_anything_elsewhere_there_is_no_section(tmp_path: Path) -> None:
    write(tmp_path / "0", "LoRA", 0, [TRAINED])
    assert 'aria-labelledby="elsewhere"' not in report_html(tmp_path, resamples=100)


def test_names_of_domains_are_text(tmp_path: Path) -> None:
    write(tmp_path / "0", "<b>LoRA", 0, [TRAINED | {"a": 5}])
    found = section(tmp_path)
    assert "<b>" not in found
    assert "Elsewhere (" not in found  # of a single place, which has its own column
    write(tmp_path / "1", "BitFit", 0, [TRAINED | {"a": 10}])
    assert "BitFit is right on 100.0% of the images elsewhere, 20.0 points more than" in section(
        tmp_path / "1"
    )
