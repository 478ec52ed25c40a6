"""What the command line refuses, and how it says so; what it takes, in every form."""

from pathlib import Path
from typing import Any

import pytest

import paretune as pt
from paretune._values import parse, parse_many, parse_number
from paretune.attacks import ATTACKS, THREATS
from paretune.commands import COMMANDS, parser
from paretune.commands.cli import main
from paretune.commands.options import MOST_CHARACTERS, MOST_NODES, check_yaml
from paretune.strategies import STRATEGIES
from paretune.sweeps.config import RunConfig, Seeds, Strategies

NEEDED = {
    "evaluate": ["adapter"],
    "average": ["runs", "--soup", "uniform"],
    "distance": ["a", "b"],
    "report": ["runs"],
    "watch": ["runs"],
    "analyze": ["file"],
    "completion": ["bash"],
    "runs list": ["runs"],
    "runs show": ["run"],
    "runs diff": ["first", "second"],
    "runs export": ["runs"],
    "runs verify": ["runs"],
    "runs remove": ["runs"],
    **{words: ["adapter"] for words in COMMANDS if words.startswith("adapters ")},
}


def chosen(arguments: list[str]) -> dict[str, Any]:
    """The fields of the command as it would be called."""
    called = parser.read(arguments)
    assert called is not None
    return vars(called[0])


def refused(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error."""
    assert main(arguments) == 2
    told, complained = capfd.readouterr()
    assert told == ""
    assert complained.count("\n") == 1
    assert "Traceback" not in complained
    return complained.removeprefix("paretune: error: ").strip()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever were written or trained by mistake would lie here, and training is one."""
    monkeypatch.chdir(tmp_path)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it began")

    monkeypatch.setattr("paretune.sweeps.config.train", never)
    monkeypatch.setattr("paretune.sweeps.grid.run_all", never)
    monkeypatch.setattr("paretune.commands.evaluate.load_adapted", never)


# ---- numbers and lists -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--epsilon", "-1/255", "epsilon='-1/255': Linf: epsilon must be a finite number above 0"),
        ("--epsilon", "0", "epsilon='0': Linf: epsilon must be a finite number above 0"),
        ("--epsilon", "8", "did you mean 8/255?"),
        ("--epsilon", "", "epsilon must be a number or a fraction such as 4/255, got ''"),
        ("--epsilon", "nan", "epsilon must be a number or a fraction such as 4/255, got 'nan'"),
        ("--epsilon", "-inf", "epsilon must be a number or a fraction such as 4/255, got '-inf'"),
        ("--epsilon", "1e400", "a number in '1e400' is too large"),
        ("--epsilon", "1/0", "division by zero"),
        ("--epsilon", "True", "epsilon must be a number"),
        ("--epsilon", "9**9**9", "an exponent may be at most 64"),
        ("--norm", "linf", "--norm must be one of Linf, L2, L1, got 'linf'; did you mean Linf?"),
        ("--seed", "-1", "seed must be a whole number from 0 to 4294967295, got -1"),
        ("--seed", str(2**64), f"seed must be a whole number from 0 to 4294967295, got {2**64}"),
        ("--seed", "1.5", "--seed must be a whole number, got '1.5'"),
        ("--seed", "", "--seed must be a whole number, got ''"),
        ("--limit", "", "--limit must be one of all or a whole number or null, got ''"),
        ("--split-seed", "-1", "split_seed must be a whole number from 0"),
        ("--img-size", "0", "img_size must be a whole number from 1"),
        ("--limit", "0", "limit must be a whole number from 1"),
        ("--batch-size", "0", "batch_size must be a whole number from 1"),
        ("--batch-size", "5000", "batch_size=5000 is more than the 601 images of the train split"),
        ("--points", "0", "points must be a whole number from 1"),
        ("--eval-steps", "0", "eval_steps must be a whole number from 1"),
        ("--train-steps", "-1", "train_steps must be a whole number from 0"),
        ("--objective", "TRADS()", "--objective: unknown name 'TRADS' in 'TRADS()'; did you mean TRADES?"),
        ("--objective", "PGD(Linf(4/255))", "--objective: 'PGD(Linf(4/255))' is no objective; there are: "),
        ("--objective", "TRADES(lam=1)", "did you mean beta? Its fields: inner, beta, label_smoothing"),
        ("--balance", "some", "--balance must be one of none, weights, sampling, got 'some'"),
        ("--train-steps", str(10**20), "train_steps must be a whole number from 0"),
        ("--epochs", "0", "epochs must be above 0"),
        ("--epochs", "nan", "--epochs must be a finite number, got 'nan'"),
        ("--epochs", "1e300", "epochs must be above 0 and at most"),
        ("--optimizer.lr", "0", "lr must be above 0"),
        ("--optimizer.layer_decay", "0", "layer_decay must be above 0 and at most 1"),
        ("--optimizer.layer-decay", "1.5", "layer_decay must be above 0 and at most 1"),
        ("--optimizer.head_lr", "nan", "--optimizer.head-lr must be a finite number or null, got 'nan'"),
        ("--optimizer.schedule", "step", "must be one of cosine, linear, constant, one-cycle, got 'step'"),
        ("--optimizer", "AdamW(lr=0.1)", "--optimizer is set field by field"),
        ("--out", "", "out is empty"),
        ("--data", "/no/such", "data='/no/such'"),
        ("--backbone", "", "backbone=''"),
        ("--strategy", "", "--strategy: cannot read ''"),
        ("--strategy", "vpt", "did you mean VisualPrompt?"),
        ("--strategy", "VPT()", "did you mean VisualPrompt?"),
        ("--strategy", "full", "did you mean FullFineTune?"),
        ("--strategy", "LoRA(r=4)", "has no field 'r'; did you mean rank?"),
        ("--strategy", "LoRA(lora_alpha=4)", "did you mean alpha?"),
        ("--strategy", "LoRA(target_modules='q')", "did you mean targets?"),
        ("--strategy", "LoRA(rnak=4)", "did you mean rank?"),
        ("--strategy", "lora,bitfit", "'lora,bitfit' is not one of: FullFineTune"),
        ("--strategy", "3", "'3' is not one of: FullFineTune"),
        ("--strategies", "lora", "--strategies belongs to compare and plan; train takes --strategy"),
        ("--learning-rate", "0.1", "there is no option --learning-rate"),
        ("--lr", "0", "lr must be above 0"),
        ("--lr", "best", "--lr must be one of auto or a finite number or null, got 'best'"),
    ],
)
def test_train_refuses(option: str, value: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert message in refused(["train", option, value], capfd)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--strategies", "", "--strategies: '' names nothing; name at least one of: FullFineTune"),
        ("--strategies", ",", "names nothing"),
        ("--strategies", "lora,,bitfit", "cannot read 'lora,,bitfit'"),
        ("--strategies", "lora,3", "is not one of: FullFineTune"),
        ("--seeds", "", "--seeds: seeds must be whole numbers from 0 to 4294967295"),
        ("--seeds", "0-4", "separated by commas as in 0,1,2; got '0-4'"),
        ("--seeds", "-1", "got '-1'"),
        ("--seeds", f"0,{2**64}", "seeds must be"),
        ("--level", "95", "level must lie in (0, 1), such as 0.95; got 95; did you mean 0.95?"),
        ("--level", "0", "level must lie in (0, 1)"),
        ("--min-clean", "80", "min_clean must be an accuracy in [0, 1)"),
        ("--max-trainable", "0", "max_trainable must be at least 1"),
        ("--max-seconds", "0", "max_seconds must be above 0"),
        ("--strategy", "lora", "--strategy belongs to train; compare takes --strategies"),
        ("--budget", "2h", "budget is that of a race; give until certain too"),
        ("--until", "bored", "until"),
    ],
)
def test_compare_refuses_before_it_trains(
    option: str, value: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(["compare", option, value], capfd)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "needs at least two seeds"),
        (["--max-seconds", "9"], "max_seconds is a limit on finished runs"),
        (["--budget", "soon"], "budget must be a time or a number of"),
    ],
)
def test_a_race_is_refused_before_it_begins(
    arguments: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(["compare", "--until", "certain", *arguments], capfd)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--epsilons", "", "epsilons names no radius"),
        ("--epsilons", "1/255,,2/255", "epsilons must be a number or a fraction such as 4/255, got ''"),
        ("--epsilons", "-1/255,1/255", "epsilon must be a finite number above 0"),
        ("--epsilons", "9**9**9", "an exponent may be at most 64"),
        ("--attacks", "", "attacks: '' names nothing; name at least one of: PGD"),
        ("--attacks", "bim(Linf(0.1))", "did you mean PGD?"),
        ("--attacks", "PGD(Linf(0.1), iters=3)", "did you mean steps?"),
        ("--steps", "0", "steps must be a whole number from 1"),
        ("--restarts", "0", "restarts must be a whole number from 1"),
        ("--batch-size", "0", "batch_size must be a whole number from 1"),
        ("--seed", "-1", "seed must be a whole number from 0"),
        ("--limit", "0", "limit must be a whole number from 1"),
    ],
)
def test_evaluate_refuses_before_it_loads(
    option: str, value: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(["evaluate", "run", option, value], capfd)


def test_a_size_of_zero_is_refused_not_replaced() -> None:
    with pytest.raises(ValueError, match=r"img_size must be a whole number from 1 .*; got 0"):
        pt.load_backbone("timm:test_resnet", num_classes=2, img_size=0, pretrained=False)
    for size in (0, -1, True):
        with pytest.raises(ValueError, match="img_size must be a whole number from 1"):
            RunConfig(img_size=size)


@pytest.mark.parametrize("arguments", [["evaluate"], ["adapters", "show"], ["report"], ["analyze"]])
def test_what_is_missing_is_named(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert f"{' '.join(arguments)} needs " in refused(arguments, capfd)


@pytest.mark.parametrize(
    "error",
    [KeyError("lost"), AttributeError("no such thing"), IndexError(), RecursionError("deep")],
    ids=repr,
)
def test_an_error_that_nobody_foresaw_is_one_line_too(
    error: Exception, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise error

    monkeypatch.setattr("paretune.commands.info.Info.__call__", broken)
    assert refused(["info"], capfd)


# ---- bounded reading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9",
        "9**9**9**9",
        "2**64**2",
        "10**64*10**64",
        "9" * 5000,
        "-" * 5000 + "1",
        "(" * 3000 + ")" * 3000,
        "1+" * 3000 + "1",
        "'a'*10**9",
        "[1]*10**9",
        "[" * 80 + "]" * 80,
        "1" * 20_000,
        "(-1)**0.5",
        "1j",
        "True",
        "\0",
        "",
        "٤",
        "1_",
        "LoRA()",
    ],
)
def test_no_text_takes_long_or_fails_otherwise(text: str) -> None:
    for read in (
        parse_number,
        lambda _, text: parse(text, STRATEGIES),
        lambda _, text: parse_many(text, STRATEGIES),
    ):
        if text == "LoRA()" and read is not parse_number:
            continue
        with pytest.raises(ValueError, match=r".") as caught:
            read("epsilon", text)
        assert len(str(caught.value)) < 1000


def test_numbers_are_read() -> None:
    assert parse_number("epsilon", "4/255") == 4 / 255
    assert parse_number("epsilon", " 2**-3 ") == 0.125
    assert parse_number("epsilon", "-(1 + 2) * 1e-3") == -3e-3
    assert parse("PGD(Linf(2**3/255), steps=2*5)", {**ATTACKS, **THREATS}) == pt.PGD(
        pt.Linf(8 / 255), steps=10
    )


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


CONFIGS = {
    "seeds: 1,2\nstrategies: lora\n": "--strategies belongs to compare and plan; train takes --seed and --strategy",
    "epochz: 3\n": "there is no option --epochz; train takes --epochs",
    "nonsense: 3\n": "there is no option --nonsense; paretune train --help lists what it takes",
    "optimizer:\n  nonsense: 1\n": "--optimizer has no field 'nonsense'; its fields: lr, weight_decay",
    "epsilon: 0.01\n": "--epsilon must be a text (in a YAML file: in quotes), got '0.01'",
    "epochs: many\n": "--epochs must be a finite number, got 'many'",
    "epochs: 1\nepochs: 2\n": "has epochs 2 times; leave one",
    "strategy:\n  class_path: paretune.LoRA\n": "--strategy: unknown name None",
    "": "it is empty",
    "# nothing\n": "it is empty",
    "- a\n- b\n": "it is a list",
    "just text": "it is a str",
    "1: 2\n": "must hold lines of an option and its value",
    "a: [1\n": "is no YAML",
    "a: !!python/object/apply:os.system [true]\n": "",
    "seeds: " + "[" * 3000 + "]" * 3000 + "\n": "is nested too deeply to read",
    "seeds: &a [*a]\n": "is too much to read",
    bomb(9): "is too much to read with each alias written out",
    "x: " + "a" * 200_000: "is too long to read",
    "x: " + "a" * 900_000: "is too long to read",
}


@pytest.mark.parametrize(
    ("text", "message"), [pytest.param(*case, id=case[0][:20]) for case in CONFIGS.items()]
)
def test_configurations_that_train_refuses(
    text: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert message in refused(["train", "--config", str(tmp_path / "c.yaml")], capfd)


@pytest.mark.parametrize("file", ["none.yaml", "", "."])
def test_a_configuration_is_a_file(file: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert "--config must name a YAML file" in refused(["train", "--config", file], capfd)


def test_a_configuration_of_bytes_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\x80\x81")
    assert "is no text in UTF-8" in refused(["train", "--config", "c.yaml"], capfd)


def test_no_option_opens_an_alias_bomb(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bomb.yaml").write_text(bomb(9))
    assert "is too much to read" in refused(["train", "--optimizer", "bomb.yaml"], capfd)
    inline = "{" + bomb(9).strip().replace("\n", ", ") + "}"
    for option in ("--limit", "--optimizer", "--optimizer.lr"):
        assert len(refused(["train", option, inline], capfd)) < 1000


def test_aliases_within_the_limit_are_read() -> None:
    check_yaml("a: &a [1, 2]\nb: *a\n", "c.yaml")
    check_yaml("x: [" + "1, " * (MOST_NODES - 10) + "1]", "c.yaml")
    with pytest.raises(ValueError, match="too much"):
        check_yaml("x: [" + "1, " * MOST_NODES + "1]", "c.yaml")
    assert MOST_NODES * 3 < MOST_CHARACTERS


# ---- what is taken -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_the_printed_configuration_of_each_command_reads_back(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = NEEDED.get(command, [])
    with pytest.raises(SystemExit, match="0"):
        main([*command.split(), *needed, "--print-config"])
    text = capsys.readouterr().out
    (tmp_path / "c.yaml").write_text(text)
    if text.strip() not in ("", "{}"):
        with pytest.raises(SystemExit, match="0"):
            main([*command.split(), "--config", "c.yaml", *needed, "--print-config"])
        assert capsys.readouterr().out == text
        called = [*command.split(), *needed]
        assert chosen([*called, "--config", "c.yaml"]) == chosen(called)


def test_the_defaults_of_a_run_are_those_of_the_library() -> None:
    found = chosen(["train"])
    assert {name: found[name] for name in RunConfig.__dataclass_fields__} == vars(RunConfig())


@pytest.mark.parametrize(
    "strategy", [pt.LoRA(), pt.LoRA(rank=4, targets=("q", "v")), pt.BitFit() + pt.IA3()], ids=repr
)
def test_a_strategy_is_read_in_every_form(strategy: Any, tmp_path: Path) -> None:
    import yaml

    assert chosen(["train", "--strategy", repr(strategy)])["strategy"] == strategy
    assert chosen(["train", f"--strategy={strategy!r}"])["strategy"] == strategy
    for written in (repr(strategy), strategy.to_dict()):
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({"strategy": written}))
        assert chosen(["train", "--config", "c.yaml"])["strategy"] == strategy
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({"strategies": [written, "NormTune()"]}))
        assert chosen(["compare", "--config", "c.yaml"])["strategies"] == Strategies(
            (strategy, pt.strategies.NormTune())
        )


def test_seeds_are_read_in_every_form(tmp_path: Path) -> None:
    for written in ("0,1", "0, 1", "[0, 1]", '"0,1"'):
        (tmp_path / "c.yaml").write_text(f"seeds: {written}\n")
        assert chosen(["compare", "--config", "c.yaml"])["seeds"] == Seeds((0, 1))
    (tmp_path / "c.yaml").write_text("seeds: 3\n")
    assert chosen(["compare", "--config", "c.yaml"])["seeds"] == Seeds((3,))
    assert chosen(["compare", "--seeds", "0,1"])["seeds"] == Seeds((0, 1))


def test_the_optimizer_and_the_schedule_are_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--optimizer.lr",
        "0.01",
        "--optimizer.clip",
        "null",
        "--optimizer.schedule",
        "one-cycle",
        "--optimizer.layer_decay",
        "0.75",
        "--optimizer.head-lr",
        "0.02",
        "--schedule",
        "two_hinge(0.1, 1/2)",
    ]
    with pytest.raises(SystemExit, match="0"):
        main(["train", *options, "--print-config"])
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    found = chosen(["train", "--config", "c.yaml"])
    expected = pt.training.AdamW(0.01, clip=None, schedule="one-cycle", layer_decay=0.75, head_lr=0.02)
    assert found["optimizer"] == expected
    assert found["schedule"] == pt.EpsilonSchedule.two_hinge(0.1, 0.5)


@pytest.mark.parametrize(
    "text", ["weights:", "weights:\n", '"weights": \n', "weights:\nweights_key:\n", "{weights}"]
)
def test_an_option_without_a_value_is_null_alone_as_among_others(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert chosen(["train", "--weights", "w.pth", "--config", "c.yaml"])["weights"] is None
    assert chosen(["train", "--config", "c.yaml", "--weights", "w.pth"])["weights"] == "w.pth"


@pytest.mark.parametrize("option", ["epochs", "schedule", "strategy", "data"])
def test_null_is_refused_in_words_where_an_option_needs_a_value(
    option: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for more in ("", "seed: 1\n"):
        (tmp_path / "c.yaml").write_text(f"{option}:\n{more}")
        assert f"--{option} has no value, and null is" in refused(["train", "--config", "c.yaml"], capfd)
