"""The emoji of several houses as domains: no emoji, and no variant of it, is in two splits in whatever style."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

from paretune.commands.cli import main
from paretune.data.emoji import CLASSES, PACKAGES, emoji_styles
from paretune.data.image_split import ImageSplit
from paretune.data.images import load_data
from tests.unit.data.test_images import splits_of

# A folder with node_modules where the three packages are installed.
REAL = os.environ.get("PARETUNE_EMOJI")
STYLES = ("google", "twitter")


def entry(number: int, category: str, **changed: Any) -> dict[str, Any]:
    code = f"{0x1F300 + number:04X}"
    return {
        "name": f"EMOJI {number}",
        "unified": code,
        "image": f"{code.lower()}.png",
        "category": category,
        "subcategory": "some",
        **{f"has_img_{style}": True for style in STYLES},
        **changed,
    }


def variants(name: str, *codes: str, subcategory: str = "person-role") -> list[dict[str, Any]]:
    return [
        entry(0, CLASSES[4], name=name, unified=code, image=f"{code.lower()}.png", subcategory=subcategory)
        for code in codes
    ]


ENTRIES = [
    *(entry(number, CLASSES[number % 8]) for number in range(96)),
    *variants("FARMER", "1F468-200D-1F33E", "1F469-200D-1F33E", "1F9D1-200D-1F33E"),
    *variants("RUNNER", "1F3C3", "1F3C3-200D-2640-FE0F", "1F3C3-200D-2642-FE0F-200D-27A1-FE0F"),
    *variants("FAMILY: MAN, BOY", "1F468-200D-1F466", subcategory="family"),
    *variants("FAMILY", "1F46A", subcategory="person-symbol"),
    *variants("HOLDING HANDS", "1F9D1-200D-1F91D-200D-1F9D1", subcategory="family"),
    *variants("MALE SIGN", "2642-FE0F"),
    *variants("FEMALE SIGN", "2640-FE0F"),
    *variants("MAN", "1F468"),
]
LEFT_OUT = [
    entry(200, "Flags"),
    entry(201, "Component"),
    entry(202, CLASSES[0], has_img_google=False, has_img_twitter=False),
]


def write(root: Path, entries: list[dict[str, Any]] | None = None) -> Path:
    """Packages below ROOT/node_modules, with a picture for each entry: its red is the style, green and blue its place."""
    entries = ENTRIES + LEFT_OUT if entries is None else entries
    for style, package in enumerate(PACKAGES.values()):
        folder = root / "node_modules" / package
        pictures = folder / ("assets" if style == 2 else f"img/{STYLES[style]}/64")
        pictures.mkdir(parents=True)
        if style < 2:
            (folder / "emoji.json").write_text(json.dumps(entries))
        for place, emoji in enumerate(entries):
            side = 256 if style == 2 else 64
            picture = Image.new("RGBA", (side, side), (style, place, 9, 255))
            picture.paste((77, 77, 77, 0), (0, 0, side // 2, side))  # see through
            file = pictures / emoji["image"]
            picture.save(file.with_suffix(".webp") if style == 2 else file, lossless=True)
    return root


def seen(split: ImageSplit) -> list[tuple[int, str]]:
    """Style and name of each picture; its label is its class, and where it was transparent it is white."""
    images, labels = split[:]
    assert images.shape[1:] == (3, 64, 64)
    assert (images[:, :, :, :30] == 1).all()
    pixels = (255 * images[:, :, 32, 60]).round().int().tolist()
    entries = ENTRIES + LEFT_OUT
    assert [CLASSES.index(entries[green]["category"]) for _, green, _ in pixels] == labels.tolist()
    return [(red, entries[green]["name"] + entries[green]["unified"]) for red, green, _ in pixels]


def test_the_other_styles_are_elsewhere_with_emoji_that_nothing_was_learnt_or_chosen_by(
    tmp_path: Path,
) -> None:
    data = load_data("emoji", root=write(tmp_path), train_domains="google")
    assert (data.name, data.classes, data.image_size) == ("emoji: google", CLASSES, 64)
    inside = {role: seen(split) for role, split in splits_of(data).items()}
    assert {style for examples in inside.values() for style, _ in examples} == {0}
    assert sorted(name for examples in inside.values() for _, name in examples) == sorted(
        emoji["name"] + emoji["unified"] for emoji in ENTRIES
    )
    reported = {name for _, name in inside["report"]}
    assert [*data.elsewhere] == ["twitter", "fluent"]
    for style, split in enumerate(data.elsewhere.values(), start=1):
        assert {red for red, _ in seen(split)} == {style}
        assert {name for _, name in seen(split)} == reported
    again = load_data(**json.loads(json.dumps(data.loaded_with)))
    assert again.fingerprint == data.fingerprint


@pytest.mark.parametrize("train", [None, "google", ["twitter", "fluent"]])
def test_variants_of_an_emoji_are_in_one_split_in_whatever_style(tmp_path: Path, train: Any) -> None:
    data = load_data("emoji", root=write(tmp_path), train_domains=train)
    assert (
        data.name
        == f"emoji: {'google+twitter+fluent' if train is None else train if train == 'google' else '+'.join(train)}"
    )
    where: dict[str, set[str]] = {}
    for role, split in {**splits_of(data), **data.elsewhere}.items():
        for _, name in seen(split):
            where.setdefault(name.removeprefix("FAMILY: MAN, BOY")[:6], set()).add(
                "report" if role in PACKAGES else role
            )
    assert all(len(roles) == 1 for name, roles in where.items() if not name.startswith("EMOJI"))
    learnt = torch.cat([data.train.groups, data.select.groups])  # type: ignore[list-item]
    for split in (data.report, *data.elsewhere.values()):
        assert not torch.isin(split.groups, learnt).any()


def test_groups_tell_variants_from_other_emoji(tmp_path: Path) -> None:
    (part,) = emoji_styles(write(tmp_path))["google"]().values()
    names = [
        emoji["name"] for emoji in sorted(ENTRIES, key=lambda emoji: str(emoji["image"]).removesuffix(".png"))
    ]
    groups: dict[str, set[str]] = {}
    for name, group in zip(names, part.groups or (), strict=True):
        groups.setdefault(group, set()).add(name)
    together = {frozenset(names) for names in groups.values() if len(names) > 1}
    assert together == {frozenset({"FAMILY: MAN, BOY", "FAMILY", "HOLDING HANDS"})}
    assert len(groups) == 96 + 6  # farmer, runner, family, two signs, man
    assert sum(group == "person 1f33e" for group in part.groups or ()) == 3
    assert sum(group == "1f3c3" for group in part.groups or ()) == 3


def test_fluent_may_be_missing_and_lack_emoji_and_repeats_none_in_two_classes(tmp_path: Path) -> None:
    root = write(tmp_path)
    assets = root / "node_modules" / PACKAGES["fluent"] / "assets"
    names = sorted(assets.iterdir())
    names[0].unlink()
    names[1].write_bytes(names[2].read_bytes())  # of the next class
    (part,) = emoji_styles(root)["fluent"]().values()
    assert len(part.labels) == len(ENTRIES) - 3
    for file in assets.iterdir():
        file.unlink()
    with pytest.raises(
        ValueError, match="has no picture of an emoji; install @lobehub/fluent-emoji-3d again"
    ):
        load_data("emoji", root=root)
    assets.rmdir()
    assets.parent.rmdir()
    assert load_data("emoji", root=root).name == "emoji: google+twitter"


def test_packages_are_sought_in_the_root_and_below_it_and_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "there")
    print_of = load_data("emoji", root=tmp_path / "there").fingerprint
    assert load_data("emoji", root=tmp_path / "there" / "node_modules").fingerprint == print_of
    install = "install the pictures there with `npm install emoji-datasource-google@16.0.0"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"are not in node_modules; {install}"):
        load_data("emoji")
    with pytest.raises(FileNotFoundError, match=re.escape(f"are not in {tmp_path} or {tmp_path}")):
        load_data("emoji", root=tmp_path)
    monkeypatch.chdir(tmp_path / "there")
    assert load_data("emoji").fingerprint == print_of


def test_damaged_packages_and_unequal_versions_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path)
    packages = [root / "node_modules" / PACKAGES[style] for style in STYLES]
    listed = packages[1] / "emoji.json"
    listed.write_text(json.dumps(ENTRIES[1:]))
    with pytest.raises(
        ValueError, match=re.escape("list other emoji (1f300 is one): they are of different versions")
    ):
        load_data("emoji", root=root)
    listed.write_text("[{}]")
    with pytest.raises(ValueError, match=re.escape(f"{listed} is no list of emoji (KeyError: 'category')")):
        load_data("emoji", root=root)
    listed.write_text(json.dumps(ENTRIES))
    (packages[0] / "img/google/64/1f300.png").write_bytes(b"no picture")
    with pytest.raises(
        ValueError, match=r"cannot read .*1f300.png .*; install emoji-datasource-google again"
    ):
        load_data("emoji", root=root)


def test_unknown_styles_and_other_classes_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path)
    with pytest.raises(ValueError, match="emoji has no domain 'apple'; Domains: google, twitter, fluent"):
        load_data("emoji", root=root, train_domains="apple")
    with pytest.raises(
        ValueError, match="the domain 'google' has the class 'Activities', which is none of a, b"
    ):
        load_data("emoji", root=root, classes=["a", "b"])
    with pytest.raises(ValueError, match="did you mean 'emoji'"):
        load_data("emojis")
    assert load_data("emoji", root=root, classes=CLASSES[::-1]).classes == CLASSES[::-1]


def test_the_command_line_trains_on_one_style_and_measures_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.random.fork_rng():
        torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    line = (
        f"train --backbone timm:test_resnet --weights {tmp_path}/w.pth --data emoji --data-root {write(tmp_path)} "
        "--train-domains google --img-size 64 --batch-size 16 --strategy linearprobe --epochs 1 --points 1 "
        f"--train-steps 0 --eval-steps 1 --out {tmp_path}/run"
    )
    assert main(line.split()) == 0, capsys.readouterr().err
    rows = [json.loads(text) for text in (tmp_path / "run/points.jsonl").read_text().splitlines()]
    sizes = {name: part["examples"] for name, part in rows[-1]["elsewhere"].items()}
    assert [*sizes] == ["twitter", "fluent"]
    line = f"evaluate {tmp_path}/run --weights {tmp_path}/w.pth --domain fluent --epsilons 1/255 --steps 1"
    assert main(line.split()) == 0, capsys.readouterr().err


@pytest.mark.skipif(not REAL, reason="PARETUNE_EMOJI names no folder with the packages")
def test_the_real_pictures_are_as_many_as_the_docs_say_and_none_is_in_two_splits() -> None:
    from paretune.data import emoji

    told = dict(re.findall(r"([A-Z][\w &]+?) (\d+)[,;]", str(emoji.__doc__)))
    styles = {name: read()["train"] for name, read in emoji_styles(Path(str(REAL))).items()}
    for style in STYLES:
        counts = torch.bincount(styles[style].labels)
        assert {name: int(count) for name, count in zip(CLASSES, counts, strict=True)} == {
            name: int(told[name]) for name in CLASSES
        }
    assert [len(part.labels) for part in styles.values()] == [1636, 1636, 1597]
    for part in styles.values():
        groups: dict[bytes, set[str]] = {}
        for row, group in enumerate(part.groups or ()):
            groups.setdefault(part.pixels.image(row).numpy().tobytes(), set()).add(group)
        assert max(map(len, groups.values())) == 1
    data = load_data("emoji", root=REAL, train_domains="google")
    assert [len(split) for split in (*splits_of(data).values(), *data.elsewhere.values())] == [
        981,
        247,
        408,
        408,
        406,
    ]
