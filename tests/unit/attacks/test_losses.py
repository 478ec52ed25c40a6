import torch

from paretune.attacks.losses import dlr, margin, nearest_classes, targeted_dlr

LOGITS = torch.tensor([[3.0, 1.0, 0.5, -1.0], [3.0, 1.0, 0.5, -1.0], [0.0, 2.0, 2.5, 4.0]])
LABELS = torch.tensor([0, 1, 3])


def test_margin_is_the_lead_of_the_right_class() -> None:
    torch.testing.assert_close(margin(LOGITS, LABELS), torch.tensor([2.0, -2.0, 1.5]))


def test_dlr_follows_equation_6() -> None:
    # Right: -(3 - 1) / (3 - 0.5). Wrong: -(1 - 3) / (3 - 0.5). Right: -(4 - 2.5) / (4 - 2).
    torch.testing.assert_close(dlr(LOGITS, LABELS), torch.tensor([-0.8, 0.8, -0.75]))


def test_targeted_dlr_follows_equation_7() -> None:
    targets = torch.tensor([1, 0, 0])
    # -(3 - 1) / (3 - (0.5 - 1) / 2); -(1 - 3) / the same; -(4 - 0) / (4 - (2 + 0) / 2).
    expected = torch.tensor([-2 / 3.25, 2 / 3.25, -4 / 3])
    torch.testing.assert_close(targeted_dlr(LOGITS, LABELS, targets), expected)


def test_dlr_ignores_shift_and_scale() -> None:
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 6
    for loss in (dlr, lambda z, y: targeted_dlr(z, y, (y + 1) % 6)):
        torch.testing.assert_close(loss(1e3 * logits + 7, labels), loss(logits, labels), rtol=1e-4, atol=1e-5)


def test_nearest_classes_are_the_likeliest_wrong_ones() -> None:
    assert nearest_classes(LOGITS, LABELS, 2).tolist() == [[1, 2], [0, 2], [2, 1]]
    assert nearest_classes(LOGITS, LABELS, 9).shape == (3, 3)
