"""Values print as calls and read back, and text never runs code."""

import math
import re

import pytest

from paretune._values import from_dict, number_text, parse, parse_many, parse_number, parse_sums
from paretune.attacks import L2, PGD, Linf
from paretune.strategies import STRATEGIES, BitFit, Compacter, FullFineTune, LoRA, VisualPrompt

CHOICES = {**STRATEGIES, "PGD": PGD, "Linf": Linf, "L2": L2}
EXAMPLES = [
    BitFit(),
    BitFit(bn="adapt"),
    LoRA(rank=4, targets=("q", "v"), alpha=2.0),
    Compacter(placement="mlp"),
    PGD(Linf(4 / 255), steps=7),
    PGD(L2(0.5), restarts=3),
]


@pytest.mark.parametrize("value", EXAMPLES, ids=repr)
def test_a_value_reads_back_from_its_repr_and_from_its_dict(value) -> None:
    assert parse(repr(value), CHOICES) == value
    assert from_dict(value.to_dict(), CHOICES) == value


def test_repr_shows_only_what_differs_from_the_defaults() -> None:
    assert repr(LoRA()) == "LoRA()"
    assert repr(LoRA(rank=4)) == "LoRA(rank=4)"


def test_sums_are_read_term_by_term() -> None:
    assert parse_sums("bit-fit + lora + PGD(Linf(1/2 + 1/4)), BitFit", CHOICES) == (
        (BitFit(), LoRA(), PGD(Linf(0.75))),
        (BitFit(),),
    )
    for text in ("", " ,", "lora + 3", "lora - 3", "lora +", "lora + nothing"):
        with pytest.raises(ValueError, match=r"names nothing|not one of|unknown name|cannot (read|compute)"):
            parse_sums(text, CHOICES)


def test_names_may_be_bare_and_spelt_loosely() -> None:
    assert parse("lora", CHOICES) == LoRA()
    assert parse("bit-fit".replace("-", "_"), CHOICES) == BitFit()
    assert parse("PGD(Linf(4/255), steps=7)", CHOICES) == PGD(Linf(4 / 255), steps=7)
    assert parse_many("lora(rank=2), bitfit", CHOICES) == (LoRA(rank=2), BitFit())


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "LoRA.__init__",
        "[LoRA() for _ in 'a']",
        "LoRA(rank=(lambda: 4)())",
        "LoRA(**{'rank': 4})",
        "open('x')",
        "'a' * 10**9 if True else 0",
    ],
)
def test_code_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(text, CHOICES)


def test_errors_name_the_nearest_choice_and_the_fields() -> None:
    with pytest.raises(ValueError, match="did you mean LoRA"):
        parse("lorra", CHOICES)
    with pytest.raises(ValueError, match=r"Its fields: bn, where, rank"):
        parse("LoRA(ranks=4)", CHOICES)
    with pytest.raises(ValueError, match="rank must be a whole number"):
        parse("LoRA(rank=0)", CHOICES)
    with pytest.raises(ValueError, match="has no field depth"):
        from_dict({"name": "LoRA", "depth": 3}, CHOICES)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1 / 255, "1/255"),
        (8 / 255, "8/255"),
        (0.5 / 255, "0.5/255"),
        (0.5, "0.5"),
        (0.03, "0.03"),
        (1e-05, "1e-05"),
        (0.1 + 0.2, "0.30000000000000004"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_are_short_and_exact(value: float, text: str) -> None:
    assert number_text(value) == text
    assert text == "inf" or parse_number("value", text) == value


def test_neighbours_of_a_fraction_keep_their_digits() -> None:
    for number in range(1, 256):
        value = number / 255
        assert parse_number("value", number_text(value)) == value
        assert number_text(math.nextafter(value, 2)) != number_text(value)


def test_threats_and_attacks_print_as_people_write_them() -> None:
    assert str(Linf(1 / 255)) == "Linf 1/255"
    assert repr(PGD(Linf(2 / 255), step_size=1 / 255)) == "PGD(Linf(2/255), step_size=1/255)"
    assert parse("PGD(Linf(2/255), step_size=1/255)", {"PGD": PGD, "Linf": Linf}) == PGD(
        Linf(2 / 255), step_size=1 / 255
    )


def test_names_may_have_hyphens_as_papers_write_them() -> None:
    assert parse("Visual-Prompt(kind='deep')", STRATEGIES) == VisualPrompt(kind="deep")
    assert parse_many("bit-fit,Full-Fine-Tune,LoRA(rank=2)", STRATEGIES) == (
        BitFit(),
        FullFineTune(),
        LoRA(rank=2),
    )


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("VPT-deep", "VisualPrompt(kind='deep')"),
        ("VPT-Deep(size=5)", "VisualPrompt(kind='deep')"),
        ("vptdeep", "VisualPrompt(kind='deep')"),
        ("VPT-shallow", "VisualPrompt(kind='shallow')"),
        ("FacT-TK", "FacT(form='TK')"),
        ("gps", "Sparse(score='gradient')"),
        ("vpt", "VisualPrompt"),
    ],
)
def test_errors_name_what_a_paper_calls_a_choice_with_its_options(text: str, meant: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"did you mean {meant}? ")):
        parse(text, STRATEGIES)
    assert isinstance(parse(meant, STRATEGIES), STRATEGIES[meant.partition("(")[0]])


def test_a_difference_of_values_is_still_none() -> None:
    with pytest.raises(ValueError, match=r"is not a literal|cannot compute|is not one of"):
        parse("LoRA(rank=2)-BitFit()", CHOICES)
