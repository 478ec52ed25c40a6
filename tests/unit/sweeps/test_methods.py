"""Methods are read from text as they print, and what has no meaning is refused before anything runs."""

import pytest

import paretune as pt
from paretune.sweeps.methods import Method, Methods, Soup, WiSE, labels
from paretune.sweeps.protocol import METHODS
from paretune.training import EWC, L2SP, LPFT, LwF, NoFreezing

TEXT = "FullFineTune, FullFineTune + 100*EWC(), LoRA(rank=4) + LPFT(0.3) + WiSE(0.25), bit-fit + L2SP() + LwF(), Soup()"


def test_a_method_is_a_strategy_and_what_is_added() -> None:
    full, ewc, lora, bitfit, soup = Methods.read(TEXT)
    assert full == Method(pt.FullFineTune())
    assert ewc == Method(pt.FullFineTune(), beside=100 * EWC())
    assert lora == Method(pt.LoRA(rank=4), freezing=LPFT(0.3), wise=WiSE(0.25))
    assert bitfit == Method(pt.BitFit(), beside=L2SP() + LwF())
    assert soup == Soup()
    assert isinstance(full, Method)
    assert full.freezing == NoFreezing()


def test_strategies_add_up_as_anywhere() -> None:
    (method,) = Methods.read("LoRA(rank=2) + BitFit() + L2SP()")
    assert method == Method(pt.LoRA(rank=2) + pt.BitFit(), beside=L2SP())


@pytest.mark.parametrize("methods", [Methods.read(TEXT), METHODS])
def test_what_is_printed_is_read_again(methods: Methods) -> None:
    assert Methods.read(", ".join(map(repr, methods))) == methods
    assert Methods.read([repr(method) for method in methods]) == methods
    assert Methods.read(list(methods)) == methods


def test_a_strategy_is_a_method() -> None:
    assert Methods.read([pt.BitFit(), "LoRA"]) == (Method(pt.BitFit()), Method(pt.LoRA()))


def test_what_is_trained_is_trained_once_also_for_means_alone() -> None:
    methods = Methods.read("FullFineTune + L2SP() + WiSE(0.3), FullFineTune + L2SP() + WiSE(0.6), LoRA")
    assert methods.trained == (Method(pt.FullFineTune(), beside=L2SP()), Method(pt.LoRA()))


def test_a_soup_is_of_all_that_has_a_mean_or_of_those_it_names() -> None:
    methods = Methods.read(
        "FullFineTune, Compacter, FullFineTune + EWC(), FullFineTune + WiSE(), Soup(), Soup('FullFineTune')"
    )
    *_, every, one = methods
    assert isinstance(every, Soup)
    assert isinstance(one, Soup)
    assert methods.members(every) == (Method(pt.FullFineTune()), Method(pt.FullFineTune(), beside=EWC()))
    assert methods.members(one) == (Method(pt.FullFineTune()),)


def test_labels_are_short_and_none_is_there_twice() -> None:
    methods = Methods.read(
        "FullFineTune + EWC(), FullFineTune + LwF(), Soup(('FullFineTune + EWC()',)), Soup(('FullFineTune + LwF()',)), "
        "Soup(pretrained=False)"
    )
    names = [*labels(methods).values()]
    assert names[:2] == ["FullFineTune + EWC", "FullFineTune + LwF"]
    assert names[2:4] == ["Soup(('FullFineTune + EWC()',))", "Soup(('FullFineTune + LwF()',))"]
    assert names[4] == "Soup without the model before"
    assert labels(METHODS)[METHODS[-1]] == "Soup of 4"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("full", "did you mean FullFineTune"),
        ("EWC()", "names no strategy"),
        ("LoRA + Linf(1)", "is no part of a method"),
        ("LoRA + Soup()", "Soup\\(\\) stands alone"),
        ("LoRA, LoRA()", "there 2 times"),
        ("LoRA + LPFT + RoLI", "exclude each other"),
        ("LoRA + WiSE(0.1) + WiSE(0.2)", "exclude each other"),
        ("LoRA + WiSE(2)", "alpha must lie in"),
        ("LoRA + 3", "is not one of"),
        ("", "names nothing"),
        (" , ", "names nothing"),
        ([], "names nothing"),
        ("Soup()", "mean of 0 models"),
        ("LoRA, Soup(pretrained=False)", "mean of 1 model;"),
        ("Compacter, Soup()", "mean of 0 models"),
        ("Compacter, Soup('Compacter')", "has no mean with other models"),
        ("LoRA, Soup('BitFit')", "not among the methods that train"),
    ],
)
def test_what_means_nothing_is_refused(text: object, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Methods.read(text)
