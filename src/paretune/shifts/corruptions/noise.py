"""Noise of sensors: Gaussian, shot, impulse and speckle noise, drawn for each pixel and channel on its own."""

import numpy as np

from paretune.shifts.corruptions.base import Image, Random, Version

_GAUSSIAN = {"224": (0.08, 0.12, 0.18, 0.26, 0.38), "32": (0.04, 0.06, 0.08, 0.09, 0.10)}
_SHOT = {"224": (60, 25, 12, 5, 3), "32": (500, 250, 100, 75, 50)}
_IMPULSE = {"224": (0.03, 0.06, 0.09, 0.17, 0.27), "32": (0.01, 0.02, 0.03, 0.05, 0.07)}
_SPECKLE = {"224": (0.15, 0.2, 0.35, 0.45, 0.6), "32": (0.06, 0.1, 0.12, 0.16, 0.2)}


def gaussian_noise(image: Image, severity: int, rng: Random, version: Version) -> Image:
    """Adds normal noise of a standard deviation between 0.08 and 0.38 (version 32: 0.04 to 0.1)."""
    scale = _GAUSSIAN[version][severity - 1]
    return np.clip(image + rng.normal(size=image.shape, scale=scale), 0, 1)


def shot_noise(image: Image, severity: int, rng: Random, version: Version) -> Image:
    """Counts photons: Poisson numbers whose mean is the pixel times 60 down to 3 (version 32: 500 to 50)."""
    photons = _SHOT[version][severity - 1]
    return np.clip(rng.poisson(image * photons) / photons, 0, 1)


def impulse_noise(image: Image, severity: int, rng: Random, version: Version) -> Image:
    """Salt and pepper: 3 to 27 % of the values (version 32: 1 to 7 %) become 0 or 1, as scikit-image does."""
    hit = rng.random_sample(image.shape) < _IMPULSE[version][severity - 1]
    salt = rng.random_sample(image.shape) < 0.5
    return np.where(hit, salt.astype(np.float64), image)


def speckle_noise(image: Image, severity: int, rng: Random, version: Version) -> Image:
    """Adds normal noise with a standard deviation of 0.15 to 0.6 of the pixel (version 32: 0.06 to 0.2)."""
    scale = _SPECKLE[version][severity - 1]
    return np.clip(image + image * rng.normal(size=image.shape, scale=scale), 0, 1)
