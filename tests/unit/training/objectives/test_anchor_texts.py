"""Anchors in the texts of the command line and of sweeps."""

import pytest

from paretune.training.objectives import Sum, read_objective


@pytest.mark.parametrize(
    "text",
    [
        "TRADES() + 0.1*L2SP()",
        "AdversarialTraining() + 100*EWC(fisher='exact', examples=50) + LwF(temperature=3)",
        "natural + 0.5*Distillation('runs/robust', temperature=2) + FeatureDistillation()",
    ],
)
def test_anchors_are_added_in_texts_and_read_back(text: str) -> None:
    made = read_objective(text)
    assert isinstance(made, Sum)
    assert made.learns
    assert read_objective(repr(made)) == made
    assert read_objective(made.to_dict()) == made


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("EWC(fisher='all')", "fisher must be 'true', 'exact' or 'empirical'"),
        ("LwF(T=2)", "temperature"),
        ("Distillation()", "teacher"),
        ("L2SP(alpha=-1)", "alpha"),
    ],
)
def test_what_is_wrong_with_an_anchor_is_said(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_objective(text)
