from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from paretune.attacks.base import Oracle
from paretune.attacks.search import Examples, Search, bucket
from paretune.attacks.streams import Streams
from tests.unit.attacks.victims import Linear, exact_copy


def search(n: int, *, targeted: bool = False) -> Search:
    """Of ``n`` images of class 0; what solves them is what the logits given to ``note`` say."""
    oracle = Oracle(exact_copy(Linear(3, 1, 2, 2)), 0)
    images, labels = torch.zeros(n, 1, 2, 2), torch.zeros(n).long()
    clean = torch.zeros(n, 3)
    return Search(oracle, Examples(images, labels, clean, Streams(0, torch.arange(n)), targeted))


def claims(solved: Tensor) -> Tensor:
    """Logits that call the marked lanes class 1, and the others class 0."""
    return F.one_hot(solved.long(), 3).float()


def points(n: int, value: float = 0.5) -> Tensor:
    return torch.full((n, 1, 2, 2), value)


def test_buckets_hold_what_they_must_with_at_most_an_eighth_of_padding() -> None:
    for count in range(2000):
        size = bucket(count)
        assert size >= count
        assert size - count <= count / 8
        assert bucket(size) == size
    assert [bucket(count) for count in (0, 1, 7, 16, 17, 33, 65, 129)] == [0, 1, 7, 16, 18, 36, 72, 144]


def test_buckets_are_few() -> None:
    assert len({bucket(count) for count in range(1, 257)}) == 16 + 4 * 8


def test_the_batch_keeps_its_size_until_a_smaller_bucket_holds_what_is_left() -> None:
    running, lanes = search(40), torch.arange(40)
    solved = lanes < 3
    running.note(points(40), claims(solved))
    (kept,) = running.shrink(lanes)
    assert kept is lanes  # 37 left, and 40 is the bucket of 37
    assert (running.left, len(running.rows)) == (37, 40)
    solved = lanes < 4
    running.note(points(40), claims(solved))
    (kept,) = running.shrink(lanes)  # 36 left
    assert torch.equal(kept, torch.arange(4, 40))
    assert torch.equal(running.rows, kept)
    assert running.left == 36


def test_padding_stays_out_and_lanes_keep_their_order() -> None:
    running = search(40)
    solved = torch.zeros(40, dtype=torch.bool)
    solved[10:17] = True  # 33 left: 36 lanes, so three of the solved stay as padding
    running.note(points(40), claims(solved))
    (kept,) = running.shrink(torch.arange(40))
    assert len(kept) == 36
    assert torch.equal(kept, kept.sort().values)
    assert torch.equal(running.rows, kept)
    assert running.left == 33
    # Padding is solved with its first point, whatever is seen of it later, and takes no score.
    running.note(points(36, 0.9), claims(solved[kept]))
    running.offer(points(36, 0.7), torch.ones(36))
    assert running.left == 33
    assert torch.equal(running.solved, solved)
    assert torch.equal(running.images[solved], points(7))
    assert torch.equal(running.images[~solved], points(33, 0.7))
    assert torch.equal(kept[~solved[kept]], (~solved).nonzero().flatten())


def test_all_solved_leaves_no_lane_and_no_run() -> None:
    running = search(5)
    began = []
    for number, part in running.runs(3):
        began.append((number, len(part.images)))
        running.note(points(5), claims(torch.ones(5)))
        (kept,) = running.shrink(torch.arange(5))
        assert running.left == len(kept) == len(running.rows) == 0
    assert began == [(0, 5)]


def test_a_run_gets_what_earlier_ones_left_with_its_streams() -> None:
    running, seen = search(6), []
    for number, part in running.runs(3):
        seen.append(part.streams.places.tolist())
        assert torch.equal(running.rows, part.streams.places)
        running.note(points(len(part.images)), claims(part.streams.places % 3 == number))
    assert seen == [[0, 1, 2, 3, 4, 5], [1, 2, 4, 5], [2, 5]]
    assert running.solved.all()


def test_a_point_must_score_higher_than_what_is_kept() -> None:
    running = search(3)
    running.offer(points(3, 0.2), torch.tensor([0.0, 2.0, 0.0]))
    for (_, part), score in zip(running.runs(2), (1.0, 0.5), strict=True):
        assert len(part.images) == 3
        running.offer(points(3, score), torch.full((3,), score))
    assert running.images[:, 0, 0, 0].tolist() == pytest.approx([1.0, 0.2, 1.0])
    assert not running.solved.any()


def test_only_what_counts_is_taken_and_a_target_is_reached_not_left() -> None:
    running = search(4)
    running.note(
        points(4), claims(torch.tensor([1, 1, 0, 0])), among=torch.tensor([True, False, True, False])
    )
    assert running.solved.tolist() == [True, False, False, False]
    running = search(4, targeted=True)
    running.note(points(4), claims(torch.tensor([1, 1, 0, 0])))
    assert running.solved.tolist() == [False, False, True, True]


def test_every_tensor_of_a_state_is_shrunk() -> None:
    @dataclass(frozen=True)
    class Lanes:
        a: Tensor
        b: Tensor

    running = search(4)
    running.note(points(4), claims(torch.tensor([1, 0, 1, 0])))
    lanes, extra = running.shrink(Lanes(torch.arange(4), torch.arange(8).view(4, 2)), torch.arange(4.0))
    assert lanes.a.tolist() == [1, 3]
    assert lanes.b.tolist() == [[2, 3], [6, 7]]
    assert extra.tolist() == [1.0, 3.0]
