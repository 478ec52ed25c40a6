"""What a state directory holds is counted only if it is what was written, and what such an attack can find."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import paretune as pt
from paretune.attacks import L1, L2, AutoAttack, Linf, Threat
from paretune.attacks.autoattack_state import Journal, Outcome
from tests.unit.attacks.test_autoattack import problem, same
from tests.unit.evaluation.test_evaluation_state import PGD, split

THREATS = [Linf(0.05), L2(0.3), L1(2.0)]


def attack(threat: Threat) -> AutoAttack:
    return AutoAttack(threat, steps=6, queries=12, targets=2)


def solved(state: Path) -> Path:
    """The first file that holds an image."""
    for file in sorted(state.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            if len(opened.get_tensor("rows")):
                return file
    raise AssertionError("nothing was solved")


@pytest.mark.parametrize("threat", THREATS, ids=repr)
def test_what_was_found_is_read_again(threat: Threat, tmp_path: Path) -> None:
    model, images, labels = problem()
    first = attack(threat).run(model, images, labels, batch_size=16, state=tmp_path)
    solved(tmp_path)
    again = attack(threat).run(
        model, images, labels, batch_size=16, state=tmp_path, progress=lambda _: pytest.fail("attacked")
    )
    assert same(first, again)


def far(threat: Threat, images: Tensor) -> Tensor:
    """A little outside the ball, towards the middle of [0, 1] so that each pixel stays in it."""
    towards = (0.5 - images).sign()
    return images + towards * 1.001 * threat.epsilon / threat.distance(towards, 0 * towards).view(-1, 1, 1, 1)


FORGED: dict[str, Callable[[Threat, Tensor], Tensor]] = {
    "outside the ball": far,
    "above 1": lambda _, images: images.clamp(min=1) + 1e-4,
    "below 0": lambda _, images: images.clamp(max=0) - 1e-4,
    "NaN": lambda _, images: images * float("nan"),
    "float64": lambda _, images: images.double(),
    "float16": lambda _, images: images.half(),
    "bytes": lambda _, images: (255 * images).byte(),
    "another shape": lambda _, images: images[..., :-1],
    "too few": lambda _, images: images[1:],
    "flat": lambda _, images: images.flatten(1),
}


@pytest.mark.some(8)
@pytest.mark.parametrize("threat", THREATS, ids=repr)
@pytest.mark.parametrize("forged", FORGED)
def test_images_that_the_attack_cannot_have_found_are_refused(
    forged: str, threat: Threat, tmp_path: Path
) -> None:
    model, images, labels = problem()
    attack(threat).run(model, images, labels, batch_size=16, state=tmp_path)
    file = solved(tmp_path)
    with safe_open(file, framework="pt") as opened:
        rows = opened.get_tensor("rows")
    found = Outcome(rows, FORGED[forged](threat, images[rows]), 0.0, 1, 1, 0, 0, "fp32")
    stage, batch = map(int, file.stem.split("-"))
    Journal(tmp_path).write(stage, batch, found)
    with pytest.raises(
        ValueError, match=rf"{file.name} is damaged \(.*remove it, and its part is computed again"
    ):
        attack(threat).run(model, images, labels, batch_size=16, state=tmp_path)


@pytest.mark.parametrize("what", ["an image", "a row", "a count", "the precision", "the digest"])
def test_numbers_that_were_not_written_are_refused(what: str, tmp_path: Path) -> None:
    """Also where they are within all bounds."""
    model, images, labels = problem()
    attack(THREATS[0]).run(model, images, labels, state=tmp_path)
    file = solved(tmp_path)
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        notes = opened.metadata()
    match what:
        case "an image":
            tensors["images"][0] = images[tensors["rows"][0]]
        case "a row":
            tensors = {"rows": tensors["rows"][1:], "images": tensors["images"][1:]}
        case "a count":
            notes["counts"] = notes["counts"].replace('"forwards": ', '"forwards": 1')
        case "the precision":
            notes["precision"] = "bf16"
        case "the digest":
            del notes["digest"]
    save_file(tensors, file, notes)
    with pytest.raises(ValueError, match=rf"{file.name} is damaged \(its contents are not those"):
        attack(THREATS[0]).run(model, images, labels, state=tmp_path)


def test_bits_of_an_evaluation_that_were_not_written_are_refused(tmp_path: Path) -> None:
    model, data = split()
    pt.evaluate(model, data, [PGD], batch_size=16, state=tmp_path)
    file = tmp_path / "000001.safetensors"
    with safe_open(file, framework="pt") as opened:
        bits, notes = opened.get_tensor("bits"), opened.metadata()
    row, column = (bits[1]).nonzero()[0], 1
    bits[column, row] = False
    save_file({"bits": bits}, file, notes)
    with pytest.raises(ValueError, match=rf"{file.name} is damaged \(its contents are not those"):
        pt.evaluate(model, data, [PGD], batch_size=16, state=tmp_path)
