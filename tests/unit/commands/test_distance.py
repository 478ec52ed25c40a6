"""``paretune distance``, and what it refuses."""

import json

import pytest
from PIL import Image

from paretune.commands.cli import main
from paretune.data import load_data
from paretune.shifts.distances import MMD, OTDD, Frechet, distance
from tests.unit.commands.test_average import refused
from tests.unit.commands.test_cli import weights  # noqa: F401  # a fixture

SMALL = ["--img-size", "8", "--limit", "60", "--resamples", "10"]


def printed(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 0, capfd.readouterr().err
    return capfd.readouterr().out


@pytest.mark.slow
def test_it_prints_what_the_function_returns(capfd: pytest.CaptureFixture[str]) -> None:
    sets = [load_data(name, img_size=8) for name in ("digits", "fashion-mnist")]
    names = ["distance", "digits", "fashion-mnist", "--on", "pixels", *SMALL]
    for text, kind in (
        ("otdd", OTDD(on="pixels")),
        ("mmd", MMD(on="pixels")),
        ("Frechet", Frechet(on="pixels")),
        ("OTDD(inner='gaussian')", OTDD(inner="gaussian", on="pixels")),
    ):
        known = distance(*sets, kind, limit=60, resamples=10, seed=3)
        told = json.loads(printed([*names, "--kind", text, "--seed", "3", "--json"], capfd))
        assert told == {"a": "digits", "b": "fashion-mnist", "backbone": None, **known.to_dict()}
        value, interval, floor, what = printed([*names, "--kind", text, "--seed", "3"], capfd).splitlines()
        assert value == f"{known.value:.5g}"
        assert interval == f"95 % interval: {known.low:.5g} to {known.high:.5g}"
        assert floor == f"floor, between halves of one set: {known.floor:.5g}"
        assert what == f"{kind!r}, on pixels, 60 and 60 examples"
    bare = printed([*names, "--resamples", "0"], capfd)
    assert bare.splitlines()[1:] == ["OTDD(on='pixels'), on pixels, 60 and 60 examples"]


@pytest.mark.slow
def test_features_are_of_the_weights_that_are_given(
    weights: str,  # noqa: F811
    capfd: pytest.CaptureFixture[str],
) -> None:
    arguments = ["distance", "digits", "digits", "--kind", "mmd", "--backbone", "timm:test_resnet"]
    arguments += ["--weights", weights, "--img-size", "32", "--limit", "30", "--resamples", "10"]
    told = printed(arguments, capfd).splitlines()
    assert told[3] == "MMD(), on features of timm:test_resnet, 30 and 30 examples"
    assert (
        told[4]
        == "the examples of both have the same ids; copies of an image are nearer than images that differ"
    )
    arguments[1] = "fashion-mnist"
    square, wide = (
        json.loads(printed([*arguments, "--json", "--img-size", size], capfd)) for size in ("32", "32,48")
    )
    assert square["value"] != wide["value"]
    assert square["backbone"] == "timm:test_resnet"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits"], "distance needs B; see paretune distance --help"),
        (
            ["digits", "fashion-mnist", "--on", "pixels"],
            "have the sizes 8x8 and 28x28; load both with one img_size=",
        ),
        (["digits", "clothes", "--on", "pixels"], "b='clothes': name_or_path='clothes' is no known data set"),
        (
            ["digits", "digits", "--kind", "kl"],
            "kind='kl': unknown name 'kl' in 'kl'; Choices: OTDD, MMD, Frechet",
        ),
        (
            ["digits", "digits", "--on", "labels"],
            "--on must be one of pixels, features or null, got 'labels'",
        ),
        (["digits", "digits", "--on", "pixels", "--limit", "0"], "limit must be a whole number from 2"),
        (
            ["digits", "digits", "--on", "pixels", "--img-size", "8,x"],
            "a size is one number, or height and width",
        ),
        (["digits", "digits", "--backbone", "efficient"], "backbone='efficient': name must be timm:NAME"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_means_nothing_is_refused(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(["distance", *arguments], capfd)


def test_a_table_finds_its_images_under_its_root(tmp_path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = ["path,label"]
    (tmp_path / "pictures").mkdir()
    for number in range(24):
        name = f"{number}.png"
        Image.new("RGB", (8, 8), (10 * number, 255 * (number % 2), 0)).save(tmp_path / "pictures" / name)
        rows.append(f"{name},{'ab'[number % 2]}")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(rows))
    arguments = [
        "distance",
        str(table),
        str(table),
        "--on",
        "pixels",
        "--data-root",
        str(tmp_path / "pictures"),
    ]
    assert float(printed(arguments, capfd).splitlines()[0]) == pytest.approx(0, abs=1e-9)
