"""Pictures in a report are the pixels that were kept; where none were, a sentence says why."""

import base64
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from paretune.frontiers.comparing import compare
from paretune.report import pictures as module
from paretune.report import report_html
from paretune.report.pictures import amplified, png
from paretune.runs.examples import EXAMPLES, Examples, Pictures
from paretune.runs.store import RunWriter, load_runs
from tests.synthetic import ATTACK, STRATEGIES, write_run, write_runs
from tests.unit.report.reading import Page

NAMES = ("cat", "<b>dog</b>", 'o"wl')


def keep(
    run: Path, names: tuple[str, ...] = NAMES, *, channels: int = 3, step: int = 160, seed: int = 0
) -> Examples:
    """Give a finished run labels, and pictures of three of its examples: one wrong when clean, one after."""
    rng = np.random.default_rng(seed)
    grey = rng.random((3, 1, 5, 6), dtype=np.float32)
    clean = np.repeat(grey, 3, axis=1) if channels == 1 else rng.random((3, 3, 5, 6), dtype=np.float32)
    signs = rng.choice(np.array([-4 / 255, 4 / 255], dtype=np.float32), clean.shape)
    attacked = np.clip(clean + signs, 0, 1)
    attacked[0] = clean[0]
    shown = Pictures(
        step,
        ATTACK,
        places=np.array([0, 1, 2]),
        clean=clean,
        attacked=attacked,
        predicted=np.array([[1, 1, 2], [1, 0, 2]]),
        confidence=np.array([[0.25, 0.5, 1.0], [0.25, 0.75, 0.875]], dtype=np.float32),
    )
    kept = Examples("report-400", names, np.arange(400) % 3, shown)
    (loaded,) = load_runs(run)
    writer = RunWriter(run, loaded.config)
    writer.keep(kept)
    writer.finish({})
    return kept


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two strategies with two seeds each, without examples."""
    return write_runs(tmp_path / "runs", STRATEGIES[:2])


def page(runs: Path, tmp_path: Path) -> Page:
    (tmp_path / "page.html").write_text(report_html(runs), encoding="utf-8")
    return Page(tmp_path / "page.html")


def pixels(source: str) -> np.ndarray:
    kind, content = source.split(",", 1)
    assert kind == "data:image/png;base64"
    return np.asarray(PillowImage.open(io.BytesIO(base64.b64decode(content))))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_page_shows_the_pixels_of_the_first_seed(runs: Path, tmp_path: Path, channels: int) -> None:
    made = {run.name: keep(run, channels=channels, seed=n) for n, run in enumerate(sorted(runs.iterdir()))}
    images = [pixels(str(image["src"])) for image in page(runs, tmp_path).tags("img")]
    expected = []
    for estimate in compare(runs).areas:
        number = [strategy.name for strategy in STRATEGIES].index(estimate.strategy)
        shown = made[f"{number}-seed0"].pictures
        assert shown is not None
        added = 0.5 + 0.5 / (4 / 255) * (shown.attacked - shown.clean)
        pictures = [
            shown.clean[0],
            *(each[n] for n in (1, 2) for each in (shown.clean, added, shown.attacked)),
        ]
        expected += [
            each.transpose(1, 2, 0) if len({*map(bytes, each)}) > 1 else each[0] for each in pictures
        ]
    assert len(images) == len(expected) == 14
    for image, wanted in zip(images, expected, strict=True):
        assert image.shape == wanted.shape
        assert np.abs(image - 255 * wanted).max() <= 0.5 + 1e-3


def test_every_image_says_what_it_is_and_what_the_model_says(runs: Path, tmp_path: Path) -> None:
    for run in runs.iterdir():
        keep(run)
    read = page(runs, tmp_path)
    alts = [image["alt"] for image in read.tags("img")][:7]
    assert alts == [
        "cat, clean; the model says <b>dog</b> · 25%",
        "<b>dog</b>, clean; the model says <b>dog</b> · 50%",
        "What the attack adds to <b>dog</b>, times 31.875",
        "<b>dog</b>, attacked; the model says cat · 75%",
        'o"wl, clean; the model says o"wl · 100%',
        'What the attack adds to o"wl, times 31.875',
        'o"wl, attacked; the model says o"wl · 88%',
    ]
    assert "not attacked" in read.text
    assert "Added × 31.9" in read.text
    assert "seed 0, step 160, PGD(Linf(4/255), steps=20)" in read.text
    assert not read.tags("b")


def test_runs_without_pictures_are_named_with_the_reason(runs: Path, tmp_path: Path) -> None:
    assert (
        "No pictures of Compacter, LoRA: the run kept none, as older versions did."
        in page(runs, tmp_path).text
    )
    shutil.rmtree(runs)
    begun = write_run(runs / "begun", STRATEGIES[0], finish=False)
    Examples("report-400", NAMES, np.arange(400) % 3).write(begun)
    whole = write_run(runs / "whole", STRATEGIES[1])
    writer = RunWriter(whole, load_runs(whole)[0].config)
    writer.keep(Examples("report-400", NAMES, np.arange(400) % 3))
    writer.finish({})
    text = page(runs, tmp_path).text
    assert "No pictures of LoRA: the run is not finished." in text
    assert "No pictures of Compacter: the images are too large to keep." in text


def test_another_seed_stands_in_and_is_named(runs: Path, tmp_path: Path) -> None:
    keep(runs / "0-seed1")
    text = page(runs, tmp_path).text
    assert "seed 1, step 160" in text
    assert "No pictures of Compacter:" in text


def test_a_damaged_file_is_named(runs: Path) -> None:
    keep(runs / "0-seed0")
    (runs / "0-seed0" / EXAMPLES).write_bytes(b"no")
    with pytest.raises(ValueError, match=r"0-seed0/examples\.safetensors is damaged"):
        report_html(runs)


@pytest.mark.parametrize(("rows", "images"), [(6, 14), (5, 8), (1, 1)])
def test_a_page_holds_only_so_many(
    runs: Path, tmp_path: Path, rows: int, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each strategy the same number, at least one; where even that is too much, strategies are left out."""
    for run in runs.iterdir():
        keep(run)
    monkeypatch.setattr(module, "MOST_BYTES", rows * 3 * 3 * 5 * 6)
    read = page(runs, tmp_path)
    assert len(read.tags("img")) == images
    assert ("No pictures of LoRA: the page would be too large." in read.text) == (rows == 1)


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 1), (3, 1, 9)])
def test_png_is_read_by_others(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).random(shape, dtype=np.float32)
    read = np.asarray(PillowImage.open(io.BytesIO(png(image))))
    expected = np.rint(255 * image).astype(np.uint8)
    assert np.array_equal(read, expected.transpose(1, 2, 0) if shape[0] == 3 else expected[0])


def test_grey_images_of_three_channels_are_grey_pictures() -> None:
    image = np.repeat(np.random.default_rng(0).random((1, 4, 4), dtype=np.float32), 3, axis=0)
    assert PillowImage.open(io.BytesIO(png(image))).mode == "L"


def test_what_is_added_is_enlarged_until_it_just_fits() -> None:
    shown, factor = amplified(np.array([[[[-0.02, 0.0, 0.01]]]], dtype=np.float32))
    assert factor == pytest.approx(25)
    assert shown.ravel() == pytest.approx([0.0, 0.5, 0.75])
    nothing, factor = amplified(np.zeros((1, 3, 2, 2), dtype=np.float32))
    assert (factor, nothing.min(), nothing.max()) == (1.0, 0.5, 0.5)
