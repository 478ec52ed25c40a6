"""Checks that look at values raise at once, or are kept for whoever looks at them together."""

import threading

import pytest
import torch

from paretune.attacks.inputs import check_classes, check_images
from paretune.attacks.waiting import at_once, deferring, extent, require

BAD = torch.tensor(False)


def fail() -> None:
    require(BAD, lambda: ValueError("bad"))


def test_a_check_raises_at_once_by_default_and_once_deferring_is_over() -> None:
    with pytest.raises(ValueError, match="bad"):
        fail()
    with deferring(torch.arange(2), (0, 1)) as checks:
        fail()
        with at_once(), pytest.raises(ValueError, match="bad"):
            fail()
    assert [bool(ok) for ok, _ in checks] == [False]
    assert str(checks[0][1]()) == "bad"
    with pytest.raises(ValueError, match="bad"):
        fail()


def test_another_thread_keeps_raising_at_once() -> None:
    caught: list[str] = []

    def work() -> None:
        try:
            fail()
        except ValueError as error:
            caught.append(str(error))

    with deferring(torch.arange(2), (0, 1)) as checks:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert caught == ["bad"]
    assert checks == []


def test_only_the_classes_that_are_known_are_not_looked_at() -> None:
    classes = torch.tensor([3, 1])
    images = torch.rand(2, 3, 4, 4)
    assert extent(classes) == (1, 3)
    assert extent(classes[:0]) == (0, 0)
    with deferring(classes, (5, 7)):
        assert extent(classes) == (5, 7)
        assert extent(classes.clone()) == (1, 3)
        with pytest.raises(ValueError, match="labels must be class indices from 0, got -1"):
            check_classes("labels", classes - 2, images)


def test_the_error_of_an_image_is_the_same_later() -> None:
    images = torch.rand(2, 3, 4, 4) * 255
    with pytest.raises(ValueError, match="images / 255") as now:
        check_images(images, images.device)
    with deferring(torch.arange(2), (0, 1)) as checks:
        check_images(images, images.device)
    ((ok, error),) = checks
    assert not ok
    assert str(error()) == str(now.value)
