"""The three failures are named when they happen and not otherwise."""

import pytest
import torch

from paretune.training.guards import (
    TrainingDiverged,
    catastrophic_overfitting,
    check_divergence,
    transfer_failure,
)


def test_nan_stops_and_names_step_and_remedy() -> None:
    check_divergence([torch.tensor(1.0), torch.tensor([2.0, 3.0])], 3, 0.1)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(TrainingDiverged, match=r"at step 3 with learning rate 0\.1.*AdamW\(0\.03\)"):
            check_divergence([torch.tensor(1.0), torch.tensor([2.0, bad])], 3, 0.1)


def test_catastrophic_overfitting_is_a_gap_between_the_two_attacks() -> None:
    assert "catastrophic overfitting" in (catastrophic_overfitting(0.8, 0.02, 0.1) or "")
    assert catastrophic_overfitting(0.8, 0.5, 0.1) is None  # robust
    assert catastrophic_overfitting(0.2, 0.02, 0.1) is None  # not yet trained


def test_transfer_failure_is_chance_under_attack() -> None:
    assert "transfer failure" in (transfer_failure(0.11, 0.1, 400, 4 / 255) or "")
    assert transfer_failure(0.11, 0.1, 400, 0.0) is None  # the attack has not started
    assert transfer_failure(0.5, 0.1, 400, 4 / 255) is None
