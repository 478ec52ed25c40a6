"""The corruptions are the published ones: what the authors' scripts make of one picture with the same random numbers."""

from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from paretune.shifts.corruptions import COMMON, CORRUPTIONS, EXTRA, SEVERITIES, VERSIONS, Version
from tests.fixtures.make_corruptions import KINDS, grid, picture

PUBLISHED = Path(__file__).parents[3] / "fixtures/corruptions/published.npz"


def has_frost() -> bool:
    try:
        return bool(metadata.distribution("imagecorruptions"))
    except metadata.PackageNotFoundError:
        return False


# Where imagecorruptions does not follow the scripts: its snow is not cut out of the middle, its frost is enlarged by a
# tenth, its elastic transform has no affine map, and its pixels are enlarged by their nearest neighbours.
OF_ITS_OWN = {"snow", "frost", "elastic_transform", "pixelate"}


def check(kind: str, version: Version, height: int, width: int, key: str, share: float) -> None:
    """The images are those recorded; ``share`` of the values may differ by one level of 255."""
    image, kept = picture(height, width) / 255, np.ix_(grid(height), grid(width))
    with np.load(PUBLISHED) as file:
        pixels = file[f"pixels_{key}"][KINDS.index(kind)].astype(int)
        means = file[f"means_{key}"][KINDS.index(kind)]
    for severity, expected, mean in zip(SEVERITIES, pixels, means, strict=True):
        made = CORRUPTIONS[kind](image, severity, np.random.RandomState(severity), version)
        assert made.dtype == np.float64
        assert made.shape == image.shape
        levels = (made * 255).astype(np.uint8)
        away = np.abs(levels[kept].astype(int) - expected)
        assert away.max() <= 1
        assert np.count_nonzero(away) <= share * away.size
        np.testing.assert_allclose(levels.mean((0, 1)), mean, rtol=0, atol=0.01 + share)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_corruption_is_that_of_the_authors_scripts(kind: str, version: Version) -> None:
    """The same image; single pixels may differ by one level, where a rounding decides."""
    if kind == "frost" and not has_frost():
        pytest.skip("the photographs of frost are not installed")
    check(kind, version, int(version), int(version), version, 0.005)


@pytest.mark.parametrize("kind", [kind for kind in CORRUPTIONS if kind not in OF_ITS_OWN])
def test_of_a_wide_image_a_corruption_is_that_of_imagecorruptions(kind: str) -> None:
    """Likewise, with more of these pixels: its motion blur is rounded once, not twice, and one grey field is on the edge."""
    check(kind, "224", 40, 150, "wide", 0.1)


def test_names_and_their_order_are_those_of_the_paper() -> None:
    assert tuple(CORRUPTIONS) == KINDS == COMMON + EXTRA
    assert len(COMMON) == 15
    assert EXTRA == ("speckle_noise", "gaussian_blur", "spatter", "saturate")


def test_no_two_severities_or_versions_are_the_same() -> None:
    """The tests above can tell one set of numbers from another."""
    with np.load(PUBLISHED) as file:
        for version in VERSIONS:
            for kind, means in zip(KINDS, file[f"means_{version}"], strict=True):
                assert len(np.unique(means.round(4), axis=0)) == 5, (kind, version)
        pixels_32, pixels_224 = file["means_32"], file["means_224"]
    assert (np.abs(pixels_32 - pixels_224).max(-1) > 0.01).all()
