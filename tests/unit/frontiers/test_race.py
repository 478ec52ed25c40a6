"""What a race put out is not among the best of a comparison of its runs, which otherwise stays as it is."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import paretune as pt
from paretune.frontiers.race import Out, Race, Round, Standing, read_race
from paretune.frontiers.rounds import next_round
from paretune.runs import disk
from tests.synthetic import ATTACK, STRATEGIES, write_run, write_runs

EPSILON = 4 / 255
LABELS = ("LoRA(rank=8)", "Compacter()", "BitFit()", "FullFineTune()")


def of_runs(behind: str = "LoRA(rank=8)", ahead: str = "Compacter()") -> Race:
    """Of the runs that ``write_runs`` writes: one seed of each, then the second."""
    first = {f"{number}-seed0": name for number, name in enumerate(LABELS)}
    second = {f"{number}-seed1": name for number, name in enumerate(LABELS)}
    lead = Out(ahead, behind, 0.02, 0.01, "digits", ATTACK, EPSILON)
    standings = tuple(Standing("digits", ATTACK, EPSILON, name, 0.4, 2) for name in LABELS)
    rounds = (Round(first, None, 100, 1.0, (), ()), Round(second, 1, 100, 1.0, standings, (lead,)))
    return Race(LABELS, (0, 1), 0.95, 0.005, (0.0, 0.0), rounds, "seeds", 200)


def written(root: Path, race: Race) -> Path:
    write_runs(root)
    disk.write_json(root / "race.json", race.to_dict())
    return root


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    race = of_runs()
    assert read_race(written(tmp_path, race)) == race
    assert race.out == {"LoRA(rank=8)": 2}
    assert race.stayed == ("Compacter()", "BitFit()", "FullFineTune()")
    assert read_race(tmp_path / "elsewhere") is None


def test_what_is_out_is_not_among_the_best(tmp_path: Path) -> None:
    (without,) = pt.compare(write_runs(tmp_path / "plain")).conditions
    assert {"LoRA", "Compacter"} <= {*without.tied}
    (condition,) = pt.compare(written(tmp_path / "raced", of_runs())).conditions
    assert condition.areas == without.areas  # the report split says what it says
    assert condition.differences == without.differences
    assert "LoRA" not in condition.tied
    assert "LoRA" not in condition.recommendation.confidence_set
    assert any(
        note.startswith(
            "A race put out, by areas on the select split: after round 2 LoRA (at least 0.010 behind Compacter)"
        )
        for note in condition.notes
    )
    assert "race, by areas on the select split: 8 of 8 runs" in repr(pt.compare(tmp_path / "raced"))
    assert "LoRA" not in pt.recommend(tmp_path / "raced")[0].tied


def test_the_largest_area_on_report_is_never_out(tmp_path: Path) -> None:
    (condition,) = pt.compare(written(tmp_path, of_runs("Compacter()", "BitFit()"))).conditions
    assert condition.best.strategy in condition.tied


@pytest.mark.parametrize("options", [{"margin": 0.01}, {"level": 0.99}, {"min_clean": 0.5}])
def test_a_race_answers_no_other_question(tmp_path: Path, options: dict[str, float]) -> None:
    (condition,) = pt.compare(written(tmp_path, of_runs()), **options).conditions
    assert condition.race is None
    assert not any("race" in note for note in condition.notes)


def test_runs_besides_those_of_the_race_are_compared_without_it(tmp_path: Path) -> None:
    written(tmp_path, of_runs())
    write_run(tmp_path / "more", STRATEGIES[1], 7)
    (condition,) = pt.compare(tmp_path).conditions
    assert condition.race is None


def test_without_who_was_ahead_nothing_is_out(tmp_path: Path) -> None:
    written(tmp_path, of_runs())
    (condition,) = pt.compare([path for path in tmp_path.iterdir() if path.name[0] in "023"]).conditions
    assert condition.race is not None
    assert not condition.put_out
    assert "LoRA" in condition.tied


@pytest.mark.parametrize(
    "change",
    [
        {"strategies": ["LoRA(rank=8)"]},
        {"rounds": [{"runs": {}}]},
        {"start": 3},
        {"strategies": None},
    ],
)
def test_a_damaged_record_is_an_error_that_names_it(tmp_path: Path, change: dict[str, object]) -> None:
    written(tmp_path, of_runs())
    content = json.loads((tmp_path / "race.json").read_text()) | change
    (tmp_path / "race.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"race\.json is no record of a race"):
        pt.compare(tmp_path)


def test_rounds_follow_each_other() -> None:
    race = Race(LABELS, (0, 1, 2), 0.95, 0.005, (0.0, 0.0))
    assert next_round(race) == [(name, 0) for name in LABELS]
    areas = dict(zip(LABELS, (0.2, 0.4, 0.1, 0.3), strict=True))

    def after(race: Race, seeds: dict[str, int], out: str | None = None) -> Race:
        standings = tuple(
            Standing("digits", ATTACK, EPSILON, name, areas[name], seeds[name]) for name in race.stayed
        )
        leads = () if out is None else (Out(LABELS[1], out, 0.2, 0.1, "digits", ATTACK, EPSILON),)
        runs = {f"{name} {seed}": name for name, seed in next_round(race)}
        return replace(race, rounds=(*race.rounds, Round(runs, None, 1, 1.0, standings, leads)))

    one = after(race, dict.fromkeys(LABELS, 1))
    assert next_round(one) == [(LABELS[1], 1), (LABELS[3], 1)]  # the better half
    two = dict(zip(LABELS, (1, 2, 1, 2), strict=True))
    assert next_round(after(one, two)) == [(LABELS[0], 1), (LABELS[2], 1)]
    assert next_round(after(one, two, LABELS[0])) == [(LABELS[2], 1)]
    three = after(after(one, two, LABELS[0]), dict.fromkeys(LABELS, 2))
    assert next_round(three) == [(name, 2) for name in LABELS[1:]]
    assert not next_round(after(three, dict.fromkeys(LABELS, 3)))
