"""The card of an adapter: what the hub's own parser reads, and text that stays text."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import timm
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

import paretune as pt
from paretune.interchange.card_notes import update_card
from paretune.interchange.cards import card
from paretune.runs.store import load_runs
from tests import tiny
from tests.synthetic import write_runs

HOSTILE = "<script>alert(1)</script>\n---\nlicense: mit\n---\n# owned\n```\n[x](javascript:1) | `a``b` ![i](http://x)"


def description(**changes: Any) -> dict[str, Any]:
    """A paretune.json as training writes it."""
    result = {"attack": "PGD(Linf(4/255), steps=20)", "threat": "Linf", "epsilon": 4 / 255}
    result |= {"clean": 0.91, "robust": 0.52, "examples": 400}
    area = {"task": "digits", "attack": "PGD", "threat": "Linf", "epsilon": 4 / 255, "area": 0.5, "low": 0.4}
    area |= {"high": 0.6, "level": 0.95, "points": 4, "seeds": 2, "rank": 1, "of": 3}
    config = {
        "strategy": {"name": "LoRA"},
        "call": "LoRA(rank=4)",
        "num_classes": 10,
        "classes": ["zero", "one"],
        "preprocessing": {"mean": [0.5] * 3, "std": [0.5] * 3, "image_size": 224},
        "base": {
            "architecture": "timm:resnet18",
            "source": "timm:resnet18",
            "fingerprint": "abc123",
            "published": True,
        },
        "versions": {"paretune": "0.1.0"},
        "notes": {
            "objective": "AdversarialTraining(PGD(Linf(4/255), steps=7))",
            "data": {"name": "digits", "fingerprint": "def456", "train": 1200, "report": 400},
            "results": [result, {**result, "epsilon": 8 / 255, "robust": 0.3, "attack": "PGD(Linf(8/255))"}],
            "findings": [{"step": 40, "finding": "catastrophic overfitting"}],
            "areas": [area],
        },
    }
    return config | changes


def rendered(markdown: str) -> dict[str, Any]:
    """How many elements of each kind a renderer that lets HTML through makes of it, and where its links lead."""
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    found: dict[str, Any] = {"links": []}

    class Counter(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            found[tag] = found.get(tag, 0) + 1
            if tag == "a":
                found["links"].append(attributes)

    Counter().feed(html)
    return found


def test_the_hub_reads_what_it_shows() -> None:
    data = ModelCard(card(description())).data
    assert data.library_name == "paretune"
    assert data.pipeline_tag == "image-classification"
    assert data.base_model == "timm/resnet18.a1_in1k"
    assert {"paretune", "adversarial-robustness", "lora"} <= {*data.tags}
    assert data.license is None
    assert data.model_name == "LoRA(rank=4) on timm:resnet18"
    found = [(each.metric_type, each.metric_name, each.metric_value) for each in data.eval_results]
    assert found == [
        ("accuracy", "Clean accuracy", 0.91),
        ("robust_accuracy", "Accuracy under PGD(Linf(4/255), steps=20)", 0.52),
        ("robust_accuracy", "Accuracy under PGD(Linf(8/255))", 0.3),
    ]
    assert {(each.dataset_name, each.task_type) for each in data.eval_results} == {
        ("digits", "image-classification")
    }


def test_people_read_the_threat_the_numbers_and_their_limits() -> None:
    text = card(description())
    for part in (
        "| L∞ ≤ 4/255 | PGD(Linf(4/255), steps=20) | 91.0% | 52.0% | 400 |",
        "| L∞ ≤ 8/255 | PGD(Linf(8/255)) | 91.0% | 30.0% | 400 |",
        "`AdversarialTraining(PGD(Linf(4/255), steps=7))`",
        "`digits`, fingerprint `def456`, 1,200 images to train, 400 images to report",
        "paretune.load_backbone('timm:resnet18', num_classes=10, img_size=224)",
        'paretune.load_adapter(model, "hf:USER/REPO")',
        "10 classes: zero, one",
        "| digits | L∞ ≤ 4/255 | PGD | 0.500 | 0.400 to 0.600 (95%) | 1 of 3 | 4 | 2 |",
        "upper bound",
        "not a certificate",
        "at step 40: catastrophic overfitting",
    ):
        assert part in text, part


def test_training_writes_all_that_the_card_needs(tmp_path) -> None:
    run = tiny.run(tmp_path / "run", pt.LoRA(rank=2))
    directory = tmp_path / "run" / "adapter"
    text = (directory / "README.md").read_text()
    assert text == card(json.loads((directory / "paretune.json").read_text()))
    data = ModelCard(text).data
    clean, robust = (each.metric_value for each in data.eval_results)
    assert (clean, robust) == (run.points.clean.iloc[-1], run.points.robust.iloc[-1])
    assert tiny.data().fingerprint in text
    assert "| L∞ ≤ 4/255 | PGD(Linf(4/255), steps=3) |" in text
    assert "transfer failure" in text  # ten steps are not enough, and the card does not hide it


@pytest.mark.parametrize(
    ("path", "where"),
    [
        (("call",), "call"),
        (("base", "architecture"), "architecture"),
        (("base", "source"), "source"),
        (("base", "fingerprint"), "fingerprint"),
        (("classes", 0), "class"),
        (("notes", "data", "name"), "data"),
        (("notes", "data"), "data as text"),
        (("notes", "results", 0, "attack"), "attack"),
        (("notes", "results", 0, "threat"), "threat"),
        (("notes", "findings", 0, "finding"), "finding"),
        (("notes", "areas", 0, "task"), "task"),
        (("notes", "areas", 0, "attack"), "attack of an area"),
        (("notes", "objective"), "objective"),
        (("notes", "anything"), "note"),
        (("notes", HOSTILE), "name of a note"),
        (("notes", "base_model"), "base model"),
        (("versions", "torch"), "version"),
        (("strategy", "name"), "strategy"),
    ],
)
def test_hostile_text_stays_text(path: tuple[Any, ...], where: str) -> None:
    """Nothing ends the head, adds a field to it, opens an element, a link, a heading, a fence or a row of a table."""
    config = description()
    config["base"]["source"] = None  # nothing to look up
    honest = card(config)
    place: Any = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = HOSTILE
    text = card(config)
    _, head, body = text.split("---\n", 2)
    data = yaml.safe_load(head)
    assert "license" not in data, where
    assert {*data} - {"base_model", "base_model_relation"} == {*yaml.safe_load(honest.split("---\n", 2)[1])}
    ModelCard(text)
    shown, wanted = rendered(body), rendered(honest.split("---\n", 2)[2])
    assert not {"script", "img"} & {*shown}, where
    assert "javascript:" not in str(shown.get("links")), where
    for part in ("h1", "h2", "pre", "table", "tr", "td", "links"):
        assert shown[part] == wanted[part], f"{where}: {part}"


@pytest.mark.parametrize(
    "notes",
    [
        {},
        {"results": "good"},
        {"results": [{"attack": "PGD"}]},
        {"results": [1, None]},
        {"data": "digits, fingerprint 1234"},
        {"data": {"train": "many"}},
        {"threat": "Linf(4/255)", "findings": [], "areas": [{}]},
        {"seed": None, "objective": None, "classes": {"a": [1]}},
    ],
)
def test_notes_are_free(notes: dict[str, Any]) -> None:
    """Whatever a user notes down is shown, and nothing of it is mistaken for a measurement."""
    text = card(description(notes=notes))
    ModelCard(text)
    assert "No measurement came with this adapter" in text
    for key, value in notes.items():
        if value and key != "data":
            assert json.dumps(value, ensure_ascii=False).strip('"') in text


def test_the_base_is_named_only_where_it_is_on_the_hub(tmp_path, monkeypatch) -> None:
    def base_model(source: str | None, published: bool = True, **notes: str) -> Any:
        base = {"architecture": "x", "source": source, "fingerprint": "f", "published": published}
        return ModelCard(card(description(base=base, notes=notes))).data.to_dict().get("base_model")

    (tmp_path / "mine" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert base_model("hf:google/vit-base-patch16-224") == "google/vit-base-patch16-224"
    assert base_model("hf:google/vit-base-patch16-224", published=False) is None  # weights of the user's own
    assert base_model("hf:mine/model") is None
    assert base_model(f"hf:{tmp_path}") is None
    assert base_model("timm:no_such_model") is None
    assert base_model("efficientnet-lite0") is None
    assert base_model(None) is None
    assert base_model(None, base_model="me/base") == "me/base"


def test_weights_of_ones_own_are_not_taken_for_the_published_ones(tmp_path) -> None:
    weights = timm.create_model("test_resnet").state_dict()
    for number, options in enumerate(({"pretrained": False}, {"weights": weights})):
        model = pt.load_backbone("timm:test_resnet", num_classes=2, **options)
        pt.save_adapter(pt.adapt(model, pt.BitFit()), tmp_path / str(number))
        assert pt.interchange.read_adapter(tmp_path / str(number))[0]["base"]["published"] is False
    shipped = pt.load_backbone("efficientnet-lite0", num_classes=2, img_size=24)
    assert shipped.published


def test_license_and_areas_are_added_later(tmp_path) -> None:
    write_runs(tmp_path / "runs", points=4, examples=200)
    adapter = pt.save_adapter(tiny.backbone(pt.Compacter()).eval(), tmp_path / "adapter", notes={"by": "me"})
    text = update_card(adapter, license="apache-2.0", runs=tmp_path / "runs")
    assert (adapter / "README.md").read_text() == text
    assert ModelCard(text).data.license == "apache-2.0"
    areas = pt.compare(load_runs(tmp_path / "runs")).conditions[0].areas
    ((rank, area),) = [(rank, each) for rank, each in enumerate(areas, 1) if each.strategy == "Compacter"]
    row = f"{area.area:.3f} | {area.low:.3f} to {area.high:.3f} (95%) | {rank} of 4 | 4 | 2"
    assert f"| digits | L∞ ≤ 4/255 | PGD(Linf(4/255), steps=20) | {row} |" in text
    assert update_card(adapter) == text  # what was added stays
    assert pt.interchange.read_adapter(adapter)[0]["notes"]["by"] == "me"


def test_areas_are_of_the_same_backbone(tmp_path) -> None:
    """Labels of a comparison name the backbone where a task has several."""
    adapter = pt.save_adapter(tiny.backbone(pt.Compacter()).eval(), tmp_path / "adapter")
    for backbone in ("Sequential", "timm:resnet18"):
        write_runs(tmp_path / "runs" / backbone[:4], points=3, examples=50, backbone=backbone)
    update_card(adapter, runs=tmp_path / "runs")
    (area,) = pt.interchange.read_adapter(adapter)[0]["notes"]["areas"]
    assert area["of"] == 8
    with pytest.raises(
        ValueError, match=r"the runs hold no Compacter\(\) on Sequential; they hold .*timm:resnet18"
    ):
        update_card(adapter, runs=tmp_path / "runs" / "timm")


def test_wrong_additions_are_named(tmp_path) -> None:
    write_runs(tmp_path / "runs", points=2, examples=50)
    adapter = pt.save_adapter(tiny.backbone(pt.LoRA(rank=3)).eval(), tmp_path / "adapter")
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    with pytest.raises(ValueError, match=r"apache-2\.0 or mit, got 'Apache 2'"):
        update_card(adapter, license="Apache 2")
    with pytest.raises(ValueError, match=r"the runs hold no LoRA\(rank=3\) on Sequential; they hold BitFit"):
        update_card(adapter, runs=tmp_path / "runs")
    with pytest.raises(FileNotFoundError, match="is not an adapter"):
        update_card(Path(tmp_path), license="mit")
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before
