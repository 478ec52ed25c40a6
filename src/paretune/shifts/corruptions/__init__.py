"""The 15 corruptions of ImageNet-C and its four extra ones, at severities 1 to 5, for images of any size from 8 pixels on.

They are those of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
2019 (https://arxiv.org/abs/1903.12261, section 4), written after the scripts that made the published sets
(https://github.com/hendrycks/robustness, ``ImageNet-C/create_c``): version ``"224"`` has the numbers of
``make_imagenet_c.py``, version ``"32"`` those of ``make_cifar_c.py``. They draw the same random numbers in the same order.

Numbers in pixels (radii, kernels, the cells of fog) are true to these scripts at every image size and are not rescaled;
where one cannot be evaluated at some size, the docstring of the corruption says what is done.
"""

from paretune.shifts.corruptions.applying import COMMON, CORRUPTIONS, EXTRA, corrupt
from paretune.shifts.corruptions.base import SEVERITIES, VERSIONS, Function, Version, version_for

__all__ = [
    "COMMON",
    "CORRUPTIONS",
    "EXTRA",
    "SEVERITIES",
    "VERSIONS",
    "Function",
    "Version",
    "corrupt",
    "version_for",
]
