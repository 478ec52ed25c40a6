"""Corruptions as shifts: which splits they make, by which names, and how they are written."""

import pytest
import torch

import paretune as pt
from paretune.shifts import Corruption, Corruptions, Invert, Shifts
from paretune.shifts.corruptions import COMMON, EXTRA, corrupt


def test_a_corruption_makes_what_corrupt_makes_of_the_same_examples() -> None:
    report = pt.load_data("digits", img_size=16, limit=60).report
    ((name, split),) = Corruption("shot_noise", severity=4).of(report).items()
    assert name == "shot_noise 4"
    expected = corrupt(report[:][0], report.ids, "shot_noise", 4)
    torch.testing.assert_close(split[:][0], expected, rtol=0, atol=0)
    assert torch.equal(split.labels, report.labels)
    assert torch.equal(split.ids, report.ids)
    assert (split.shift, split.paired) == ("Corruption('shot_noise', severity=4)", True)
    other = Corruption("shot_noise", severity=4, version="224").of(report)["shot_noise 4"]
    assert other.fingerprint != split.fingerprint


@pytest.mark.parametrize(("which", "kinds"), [("common", COMMON), ("extra", EXTRA), ("all", COMMON + EXTRA)])
def test_a_set_has_every_corruption_at_every_severity(which: str, kinds: tuple[str, ...]) -> None:
    report = pt.load_data("digits", img_size=8, limit=60).report
    names = [*Corruptions(which, severities=(2, 5)).of(report)]  # type: ignore[arg-type]
    assert names == [f"{kind} {severity}" for kind in kinds for severity in (2, 5)]
    assert len(Corruptions(which).parts) == 5 * len(kinds)  # type: ignore[arg-type]


def test_they_read_back_from_what_they_print() -> None:
    shifts = Shifts((Corruption("fog", severity=5, version="224"), Corruptions(severities=(1, 3)), Invert()))
    assert Shifts.read(", ".join(map(repr, shifts))) == shifts
    assert Shifts.read([shift.to_dict() for shift in shifts]) == shifts
    assert repr(Corruptions()) == "Corruptions()"
    assert repr(Corruption("fog")) == "Corruption('fog')"


def test_what_is_no_corruption_is_refused() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'fog'"):
        Corruption("foggy")
    with pytest.raises(ValueError, match="severity must be a whole number from 1 to 5, got 6"):
        Corruption("fog", severity=6)
    with pytest.raises(ValueError, match="each once"):
        Corruptions(severities=(1, 1))
    with pytest.raises(ValueError, match="which must be 'common', 'extra' or 'all', got 'rare'"):
        Corruptions("rare")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Corruption"):
        Shifts.read("Corruptoin('fog')")
