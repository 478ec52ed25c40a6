"""What is said of accuracies under shift: the mean corruption error and its relative form, and effective robustness.

Accuracies are fractions, by kind and severity, as :func:`by_corruption` reads them off the names that results use::

    >>> by_corruption({"fog 1": 0.9, "fog 2": 0.8, "night": 0.3})
    {'fog': {1: 0.9, 2: 0.8}}

The first two are those of Hendrycks and Dietterich 2019 (https://arxiv.org/abs/1903.12261, section 4), the last is that of
Taori et al. 2020 (https://arxiv.org/abs/2007.00644, section 2).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paretune.shifts.corruptions import COMMON, CORRUPTIONS, SEVERITIES

Accuracies = Mapping[str, Mapping[int, float]]  # kind, severity


@dataclass(frozen=True)
class Baseline:
    """The model that corruption errors are divided by; they mean nothing without its name.

    Args:
        name: of the model and of the data that it was measured on.
        clean: its accuracy on clean images.
        accuracies: by kind and severity.
    """

    name: str
    clean: float
    accuracies: Accuracies


def _of_errors(text: str) -> dict[str, dict[int, float]]:
    rows = ([float(error) for error in line.split()] for line in text.strip().splitlines())
    return {
        kind: {severity: 1 - error for severity, error in zip(SEVERITIES, row, strict=True)}
        for kind, row in zip(COMMON, rows, strict=True)
    }


#: torchvision's AlexNet on the files of ImageNet-C, 224 pixels, as the authors give its errors, rows in the order of
#: ``COMMON`` (https://github.com/hendrycks/robustness/issues/10); its clean error is that of table 1 of the paper. A mean
#: corruption error against it is comparable with published ones if the model was measured on the 1000 classes of ImageNet.
ALEXNET = Baseline(
    "AlexNet on ImageNet-C",
    1 - 0.435,
    _of_errors("""
        0.69528 0.82542 0.93554 0.98138 0.99452
        0.71224 0.85108 0.93574 0.98182 0.99146
        0.78374 0.89808 0.9487  0.9872  0.99548
        0.65624 0.73202 0.85036 0.91364 0.94714
        0.64308 0.75054 0.88806 0.91622 0.93344
        0.5843  0.70048 0.82108 0.8975  0.92638
        0.70008 0.76992 0.80784 0.84198 0.87198
        0.71726 0.88392 0.86468 0.9187  0.94952
        0.6139  0.79734 0.8879  0.89942 0.9343
        0.67474 0.7605  0.84378 0.8726  0.945
        0.4514  0.48502 0.54048 0.62166 0.7244
        0.64548 0.7615  0.88874 0.9776  0.9927
        0.52596 0.70116 0.55686 0.64076 0.80554
        0.52218 0.5462  0.73728 0.87092 0.91262
        0.51002 0.54718 0.57294 0.65458 0.74778
    """),
)


def by_corruption(accuracies: Mapping[str, float]) -> dict[str, dict[int, float]]:
    """Accuracies by kind and severity, of those by names such as ``"gaussian_noise 3"``; other names are left out."""
    sorted_out: dict[str, dict[int, float]] = {}
    for name, accuracy in accuracies.items():
        kind, _, severity = name.partition(" ")
        if kind in CORRUPTIONS and severity in map(str, SEVERITIES):
            sorted_out.setdefault(kind, {})[int(severity)] = float(accuracy)
    return sorted_out


def corruption_errors(
    accuracies: Accuracies, baseline: Baseline, kinds: Sequence[str] = COMMON
) -> dict[str, float]:
    """CE of each kind: the errors at severities 1 to 5 over those of the baseline, 1 for what errs as much.

    Papers print these fractions as percentages.

    Args:
        accuracies: of the model, fractions, by kind and severity.
        baseline: what errors are divided by: :data:`ALEXNET`, or any other model that was measured on the same images.
        kinds: the corruptions to give.

    Raises:
        ValueError: a kind or a severity is missing on either side, an accuracy is no fraction, or the baseline never errs.
    """
    return _ratios(accuracies, baseline, kinds, 1, 1)


def relative_corruption_errors(
    accuracies: Accuracies, clean: float, baseline: Baseline, kinds: Sequence[str] = COMMON
) -> dict[str, float]:
    """Relative CE of each kind: what errors exceed the clean error by, over what those of the baseline exceed its own by.

    Args:
        accuracies: of the model, fractions, by kind and severity.
        clean: its accuracy on clean images.
        baseline: as in :func:`corruption_errors`.
        kinds: the corruptions to give.

    Raises:
        ValueError: as in :func:`corruption_errors`; or the baseline loses nothing by a corruption.
    """
    _check_fraction("clean", clean)
    return _ratios(accuracies, baseline, kinds, clean, baseline.clean)


def mean_corruption_error(accuracies: Accuracies, baseline: Baseline) -> float:
    """mCE: the mean of the CE of all 15 corruptions, at all severities; refused of fewer.

    Args:
        accuracies: of the model, fractions, by kind and severity; the four extra corruptions do not count.
        baseline: as in :func:`corruption_errors`.

    Raises:
        ValueError: as in :func:`corruption_errors`.
    """
    return float(np.mean([*corruption_errors(accuracies, baseline).values()]))


def relative_mean_corruption_error(accuracies: Accuracies, clean: float, baseline: Baseline) -> float:
    """Relative mCE: the mean of the relative CE of all 15 corruptions.

    Args:
        accuracies: of the model, fractions, by kind and severity.
        clean: its accuracy on clean images.
        baseline: as in :func:`corruption_errors`.

    Raises:
        ValueError: as in :func:`relative_corruption_errors`.
    """
    return float(np.mean([*relative_corruption_errors(accuracies, clean, baseline).values()]))


@dataclass(frozen=True)
class Trend:
    """The accuracy under a shift that is expected of the clean one, β: a line between logits, made by :meth:`through`.

    Args:
        slope: of the line.
        intercept: in logits.
        models: how many reference models it was fitted to.
        r2: share of the variance of the shifted logits that it explains.
    """

    slope: float
    intercept: float
    models: int
    r2: float

    @classmethod
    def through(cls, clean: Sequence[float], shifted: Sequence[float]) -> "Trend":
        """The line of least squares between the logits of reference models, which nothing was done to for robustness.

        Args:
            clean: accuracy of each, in (0, 1).
            shifted: its accuracy under the shift, in (0, 1).

        Raises:
            ValueError: fewer than two models, all of one clean accuracy, or an accuracy of 0 or 1, which has no logit.
        """
        if len(clean) != len(shifted):
            raise ValueError(
                f"clean and shifted must be of the same models, got {len(clean)} and {len(shifted)}"
            )
        x = np.array([_logit("clean", accuracy) for accuracy in clean])
        y = np.array([_logit("shifted", accuracy) for accuracy in shifted])
        if len(x) < 2 or np.ptp(x) == 0:
            raise ValueError(
                f"a trend needs at least two reference models of different clean accuracy, got clean={list(clean)}"
            )
        slope, intercept = np.polyfit(x, y, 1)
        spread = float(((y - y.mean()) ** 2).sum())
        left = float(((y - slope * x - intercept) ** 2).sum())
        return cls(float(slope), float(intercept), len(x), 1 - left / spread if spread else 1.0)

    def __call__(self, clean: float) -> float:
        """The expected accuracy under the shift, β(clean).

        Raises:
            ValueError: ``clean`` does not lie in (0, 1).
        """
        return float(1 / (1 + np.exp(-self.slope * _logit("clean", clean) - self.intercept)))


def effective_robustness(clean: float, shifted: float, trend: Trend) -> float:
    """By how much the accuracy under a shift exceeds what is expected of the clean accuracy, ρ = shifted - β(clean).

    Args:
        clean: accuracy of the model on clean images, in (0, 1).
        shifted: its accuracy under the shift.
        trend: of reference models on the same two sets of images.

    Raises:
        ValueError: an accuracy is no fraction, or ``clean`` is 0 or 1.
    """
    _check_fraction("shifted", shifted)
    return shifted - trend(clean)


def _ratios(
    accuracies: Accuracies, baseline: Baseline, kinds: Sequence[str], best: float, best_of_baseline: float
) -> dict[str, float]:
    """By kind, what accuracies lack to ``best`` over what those of the baseline lack to theirs, summed over severities."""
    ratios = {}
    for kind in kinds:
        lost = sum(best - accuracy for accuracy in _over_severities("accuracies", accuracies, kind))
        where = f"the baseline {baseline.name!r}"
        of_baseline = sum(
            best_of_baseline - accuracy for accuracy in _over_severities(where, baseline.accuracies, kind)
        )
        if of_baseline <= 0:
            raise ValueError(
                f"{where} loses nothing by {kind!r}, so that no error can be divided by what it loses; give a weaker one"
            )
        ratios[kind] = lost / of_baseline
    return ratios


def _over_severities(where: str, accuracies: Accuracies, kind: str) -> list[float]:
    if kind not in CORRUPTIONS:
        raise ValueError(f"kinds must be of {', '.join(CORRUPTIONS)}; got {kind!r}")
    missing = [severity for severity in SEVERITIES if severity not in accuracies.get(kind, {})]
    if missing:
        raise ValueError(
            f"{where}: {kind!r} lacks severities {', '.join(map(str, missing))}; a corruption error is over all five "
            "of each kind, as Corruptions('common') makes them"
        )
    for severity in SEVERITIES:
        _check_fraction(f"{where}: {kind!r} {severity}", accuracies[kind][severity])
    return [float(accuracies[kind][severity]) for severity in SEVERITIES]


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be an accuracy in [0, 1], as a fraction; got {value}")


def _logit(name: str, accuracy: float) -> float:
    if not 0 < accuracy < 1:
        raise ValueError(
            f"{name} must be an accuracy between 0 and 1, as a fraction, and not one of these, which have no logit; "
            f"got {accuracy}"
        )
    return float(np.log(accuracy / (1 - accuracy)))
