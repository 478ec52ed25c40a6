"""mCE, relative mCE and effective robustness have published values on published numbers, and refuse what they are not of."""

import math
import re

import numpy as np
import pytest

from paretune.shifts.corruptions import COMMON, CORRUPTIONS, SEVERITIES
from paretune.shifts.measures import (
    ALEXNET,
    Baseline,
    Trend,
    by_corruption,
    corruption_errors,
    effective_robustness,
    mean_corruption_error,
    relative_corruption_errors,
    relative_mean_corruption_error,
)

# ResNet-50: its CE of each corruption in percent (Geirhos et al. 2019, https://arxiv.org/abs/1811.12231, table of
# corruption errors) and relative CE (Hendrycks and Dietterich 2019, table of relative corruption errors, appendix).
RESNET_50 = (79.8, 81.6, 82.6, 74.7, 88.6, 78.0, 79.9, 77.8, 74.8, 66.1, 56.6, 71.4, 84.8, 76.9, 76.8)
RELATIVE = (104, 107, 107, 97, 126, 107, 110, 101, 97, 79, 62, 89, 146, 111, 132)


def resnet_50() -> dict[str, dict[int, float]]:
    """Accuracies with these CE: at each severity the error of AlexNet times the CE."""
    return {
        kind: {
            severity: 1 - ce / 100 * (1 - accuracy) for severity, accuracy in ALEXNET.accuracies[kind].items()
        }
        for kind, ce in zip(COMMON, RESNET_50, strict=True)
    }


def flat(accuracy: float) -> dict[str, dict[int, float]]:
    return {kind: dict.fromkeys(SEVERITIES, accuracy) for kind in COMMON}


def test_resnet_50_has_its_published_errors() -> None:
    assert [100 * ce for ce in corruption_errors(resnet_50(), ALEXNET).values()] == pytest.approx(RESNET_50)
    assert round(100 * mean_corruption_error(resnet_50(), ALEXNET), 1) == 76.7
    relative = relative_corruption_errors(resnet_50(), 1 - 0.239, ALEXNET)
    assert [100 * each for each in relative.values()] == pytest.approx(
        RELATIVE, abs=0.9
    )  # rounded on both sides
    assert 100 * relative_mean_corruption_error(resnet_50(), 1 - 0.239, ALEXNET) == pytest.approx(
        105.0, abs=0.2
    )


def test_alexnet_has_the_mean_errors_that_others_divide_by() -> None:
    """Those in the code of AugMix (https://github.com/google-research/augmix, imagenet.py)."""
    means = [1 - np.mean([*ALEXNET.accuracies[kind].values()]) for kind in COMMON]
    assert means == pytest.approx(
        [
            *(0.886428, 0.894468, 0.922640, 0.819880, 0.826268, 0.785948, 0.798360, 0.866816, 0.826572),
            *(0.819324, 0.564592, 0.853204, 0.646056, 0.717840, 0.606500),
        ]
    )
    assert mean_corruption_error(ALEXNET.accuracies, ALEXNET) == 1
    assert relative_mean_corruption_error(ALEXNET.accuracies, ALEXNET.clean, ALEXNET) == 1


def test_a_baseline_may_be_any_model() -> None:
    weak = Baseline("a weak model", 0.8, flat(0.4))
    assert mean_corruption_error(flat(0.7), weak) == pytest.approx(0.5)
    assert relative_mean_corruption_error(flat(0.7), 0.9, weak) == pytest.approx(0.5)
    assert corruption_errors(flat(0.7) | {"fog": dict.fromkeys(SEVERITIES, 0.1)}, weak, ["fog"]) == {
        "fog": pytest.approx(1.5)
    }


def test_severities_are_summed_before_they_are_divided() -> None:
    model = flat(0.5) | {"fog": {1: 0.9, 2: 0.8, 3: 0.7, 4: 0.6, 5: 0.5}}
    baseline = Baseline("steep", 1.0, {"fog": {1: 0.5, 2: 0.5, 3: 0.5, 4: 0.5, 5: 0.0}})
    assert corruption_errors(model, baseline, ["fog"])["fog"] == pytest.approx(1.5 / 3)


def test_names_of_results_are_read() -> None:
    names = {f"{kind} {severity}": severity / 10 for kind in CORRUPTIONS for severity in SEVERITIES}
    sorted_out = by_corruption(
        names | {"night": 0.2, "fog": 0.3, "fog 6": 0.1, "rotation 3": 0.5, "fog 3 x": 0}
    )
    assert sorted_out == {kind: {s: s / 10 for s in SEVERITIES} for kind in CORRUPTIONS}
    assert mean_corruption_error(sorted_out, ALEXNET) == mean_corruption_error(
        {kind: sorted_out[kind] for kind in COMMON}, ALEXNET
    )


def test_reference_models_on_a_line_have_no_effective_robustness() -> None:
    clean = [0.5, 0.6, 0.7, 0.8]
    shifted = [1 / (1 + math.exp(-(1.2 * math.log(x / (1 - x)) - 0.7))) for x in clean]
    trend = Trend.through(clean, shifted)
    assert (trend.slope, trend.intercept, trend.models) == (pytest.approx(1.2), pytest.approx(-0.7), 4)
    assert trend.r2 == pytest.approx(1)
    for x, y in zip(clean, shifted, strict=True):
        assert effective_robustness(x, y, trend) == pytest.approx(0, abs=1e-12)
        assert effective_robustness(x, y + 0.1, trend) == pytest.approx(0.1)


def test_the_line_is_of_least_squares_between_logits() -> None:
    """By hand: logits of 0.5, 0.731..., 0.880... are 0, 1 and 2; those of shifted 0, 0 and 1: slope 1/2, intercept -1/6."""
    sigmoid = [1 / (1 + math.exp(-value)) for value in (0, 1, 2)]
    trend = Trend.through(sigmoid, [0.5, 0.5, sigmoid[1]])
    assert (trend.slope, trend.intercept) == (pytest.approx(1 / 2), pytest.approx(-1 / 6))
    assert trend.r2 == pytest.approx(0.75)
    assert trend(0.5) == pytest.approx(1 / (1 + math.exp(1 / 6)))


def test_what_is_missing_or_no_fraction_is_named() -> None:
    without = {kind: each for kind, each in flat(0.5).items() if kind != "frost"}
    with pytest.raises(ValueError, match="accuracies: 'frost' lacks severities 1, 2, 3, 4, 5"):
        mean_corruption_error(without, ALEXNET)
    with pytest.raises(ValueError, match="'fog' lacks severities 2, 4; a corruption error is over all five"):
        corruption_errors(flat(0.5) | {"fog": {1: 0.1, 3: 0.2, 5: 0.3}}, ALEXNET)
    with pytest.raises(ValueError, match="the baseline 'AlexNet on ImageNet-C': 'saturate' lacks"):
        corruption_errors({"saturate": dict.fromkeys(SEVERITIES, 0.5)}, ALEXNET, ["saturate"])
    with pytest.raises(
        ValueError,
        match=re.escape("'gaussian_noise' 1 must be an accuracy in [0, 1], as a fraction; got 71.2"),
    ):
        mean_corruption_error(flat(71.2), ALEXNET)
    with pytest.raises(ValueError, match=re.escape("clean must be an accuracy in [0, 1]")):
        relative_corruption_errors(flat(0.5), 76.1, ALEXNET)
    with pytest.raises(ValueError, match="the baseline 'perfect' loses nothing by 'gaussian_noise'"):
        mean_corruption_error(flat(0.5), Baseline("perfect", 1.0, flat(1.0)))
    with pytest.raises(ValueError, match="loses nothing"):
        relative_mean_corruption_error(flat(0.5), 0.6, Baseline("immune", 0.4, flat(0.4)))
    with pytest.raises(ValueError, match="got 'haze'"):
        corruption_errors(flat(0.5), ALEXNET, ["haze"])


def test_a_trend_that_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two reference models of different clean accuracy"):
        Trend.through([0.5], [0.4])
    with pytest.raises(ValueError, match=re.escape("got clean=[0.5, 0.5]")):
        Trend.through([0.5, 0.5], [0.4, 0.3])
    with pytest.raises(ValueError, match="of the same models, got 2 and 1"):
        Trend.through([0.5, 0.6], [0.4])
    with pytest.raises(ValueError, match=r"shifted must be an accuracy between 0 and 1.* got 0"):
        Trend.through([0.5, 0.6], [0.4, 0])
    trend = Trend.through([0.5, 0.6], [0.4, 0.5])
    with pytest.raises(ValueError, match=re.escape("shifted must be an accuracy in [0, 1]")):
        effective_robustness(0.5, 40, trend)
    with pytest.raises(ValueError, match="clean must be an accuracy between"):
        effective_robustness(1, 0.4, trend)
