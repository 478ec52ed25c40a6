"""An image through a network leaves nothing behind."""

import pytest
import torch
from torch import Tensor, nn

from paretune.backbones.passing import blank_image, one_pass, ramp_image


class Caching(nn.Module):
    """Keeps what follows from its weight until training begins, as TinyViT does; fails on a dark image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.inner = nn.Dropout()
        self.kept: Tensor | None = None

    def train(self, mode: bool = True) -> "Caching":
        self.kept = None if mode else self.kept
        return super().train(mode)

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.kept = 2 * self.weight
        torch.rand(1)
        if not images.any():
            raise RuntimeError("dark")
        return images.mean((2, 3)) * self.kept


def test_modes_random_state_and_what_is_kept_are_as_before() -> None:
    model = Caching()
    model.inner.eval()  # frozen by its user
    state = torch.get_rng_state()
    answer = one_pass(model, ramp_image(model, 3, (4, 6)))
    assert answer.shape == (1, 3)
    assert not answer.requires_grad
    with pytest.raises(RuntimeError, match="dark"):
        one_pass(model, blank_image(model, 3, 4))
    assert (model.training, model.inner.training, model.kept) == (True, False, None)
    assert torch.equal(torch.get_rng_state(), state)


def test_images_have_the_type_of_the_network_and_its_size() -> None:
    model = Caching().to(torch.bfloat16)
    for image in (blank_image(model, 3, (4, 6)), ramp_image(model, 3, (4, 6))):
        assert (image.shape, image.dtype) == ((1, 3, 4, 6), torch.bfloat16)
    assert (float(image.min()), float(image.max())) == (0.0, 1.0)
