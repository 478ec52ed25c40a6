from dataclasses import dataclass

import torch
from torch import Tensor

from paretune.attacks.active import ActiveSet, bucket, take


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
    active = ActiveSet(torch.arange(40))
    solved = torch.zeros(40, dtype=torch.bool)
    solved[:3] = True
    assert active.retire(solved) is None  # 37 left, and 40 is the bucket of 37
    assert len(active.rows) == 40
    assert active.searching.sum() == 37
    solved[3] = True
    keep = active.retire(solved)  # 36 left
    assert keep is not None
    assert torch.equal(keep, torch.arange(4, 40))
    assert torch.equal(active.rows, keep)
    assert active.searching.all()


def test_padding_stays_out_and_lanes_keep_their_order() -> None:
    active = ActiveSet(torch.arange(100, 140))
    solved = torch.zeros(40, dtype=torch.bool)
    solved[10:17] = True  # 33 left: 36 lanes, so three of the solved stay as padding
    keep = active.retire(solved)
    assert keep is not None
    assert len(keep) == 36
    assert torch.equal(keep, keep.sort().values)
    assert active.searching.sum() == 33
    assert torch.equal(
        active.rows[active.searching], torch.cat([torch.arange(100, 110), torch.arange(117, 140)])
    )
    # Padding that is called solved again changes nothing.
    assert active.retire(~active.searching) is None


def test_all_solved_leaves_no_lane() -> None:
    active = ActiveSet(torch.arange(5))
    keep = active.retire(torch.ones(5, dtype=torch.bool))
    assert keep is not None
    assert len(keep) == len(active.rows) == 0


def test_take_indexes_every_tensor() -> None:
    @dataclass(frozen=True)
    class Lanes:
        a: Tensor
        b: Tensor

    taken = take(Lanes(torch.arange(4), torch.arange(8).view(4, 2)), torch.tensor([3, 1]))
    assert taken.a.tolist() == [3, 1]
    assert taken.b.tolist() == [[6, 7], [2, 3]]
