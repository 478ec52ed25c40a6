import torch
from torch import Tensor

from paretune.attacks.streams import Streams


def uniform(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(images.shape, generator=generator)


def streams(places: int = 6, seed: int = 0) -> Streams:
    return Streams(seed, torch.arange(places))


IMAGES = torch.zeros(6, 2, 3)


def test_what_an_image_draws_does_not_depend_on_its_batch() -> None:
    together = streams().draw(1, IMAGES, uniform)
    rows = torch.tensor([4, 0])
    assert torch.equal(streams().take(rows).draw(1, IMAGES[rows], uniform), together[rows])


def test_images_runs_seeds_and_purposes_draw_different_numbers() -> None:
    first = streams().draw(0, IMAGES, uniform)
    assert len(first.flatten(1).unique(dim=0)) == 6
    assert not torch.equal(first, streams().draw(1, IMAGES, uniform))
    assert not torch.equal(first, streams(seed=1).draw(0, IMAGES, uniform))
    assert not torch.equal(first, streams().derive("fab").draw(0, IMAGES, uniform))
    assert torch.equal(first, streams().draw(0, IMAGES, uniform))


def test_neighbouring_seeds_and_places_are_unrelated() -> None:
    many = torch.stack(
        [streams(50, seed).draw(0, torch.zeros(50, 40), uniform) for seed in range(4)]
    ).flatten(0, 1)
    correlation = torch.corrcoef(many)
    off = correlation[~torch.eye(200, dtype=torch.bool)]
    # 40 numbers each: the standard error of a correlation is 1/sqrt(40), and the mean of 19,900 is near 0.
    assert off.abs().max() < 5.5 / 40**0.5
    assert abs(float(off.mean())) < 0.01


def test_the_shared_stream_is_the_same_for_every_batch() -> None:
    part = streams().take(torch.tensor([2]))
    assert torch.equal(torch.rand(3, generator=streams().shared(1)), torch.rand(3, generator=part.shared(1)))


def test_no_images_draw_nothing() -> None:
    none = streams().take(torch.zeros(0, dtype=torch.int64))
    assert none.draw(0, IMAGES[:0], uniform).shape == (0, 2, 3)
