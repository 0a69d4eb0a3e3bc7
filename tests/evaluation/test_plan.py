"""From what was given to options, and from options to units."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrzs.errors import UsageError
from hrzs.evaluation.options import SUITE, EvalOptions
from hrzs.evaluation.plan import Unit, plan, settle
from hrzs.hierarchy.tree import Tree
from hrzs.models.classifier import SCORINGS
from hrzs.tasks import Task

EPS = Fraction(2, 255)  # what shapes sets


def names(units: list[Unit]) -> list[tuple[Any, ...]]:
    return [(u.attack, u.level, u.scoring) for u in units]


# -- options ------------------------------------------------------------------------------------------------------


def test_texts_numbers_and_lists_come_to_the_same() -> None:
    wanted = EvalOptions(attack=("cw", "leaf-pgd"), level=1, eps=(Fraction(1, 255), Fraction(1, 2)), step_size=Fraction(1, 510),
                         steps=3)  # fmt: skip
    for said in (
        {"attack": "cw, leaf-pgd", "level": "1", "eps": "1/255,0.5,1/255", "step_size": "1/510", "steps": 3},
        {"attack": ["cw", "leaf-pgd"], "level": 1, "eps": (1 / 255, Fraction(1, 2)), "step_size": 1 / 510, "steps": 3},
    ):
        assert settle({**said, "norm": None, "seed": None}) == wanted
    assert settle({}) == EvalOptions()
    assert settle({"level": "all"}).level == "all"


def test_a_configuration_is_read_back() -> None:
    for options in (EvalOptions(), settle({"attack": "none", "eps": "1/255,2/255", "step_size": "1/510", "level": 2})):
        config = {name.replace("-", "_"): value for name, value in options.as_config().items()}
        assert settle(config) == options


@given(st.lists(st.fractions(Fraction(1, 10**6), 1), min_size=1, max_size=5))
def test_radii_keep_their_order_and_come_once(eps: list[Fraction]) -> None:
    assert settle({"eps": ",".join(map(str, eps + eps))}).eps == tuple(dict.fromkeys(eps))


@pytest.mark.parametrize("text", ["1/255,", ",1/255", "1/255;2/255", "1/255,4"])
def test_radii_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--eps"):
        settle({"eps": text})


@pytest.mark.parametrize("level", ["-1", "low", "", "²", "1.0", 1.5])
def test_what_is_no_level_is_refused(level: object) -> None:
    with pytest.raises(UsageError, match=f"--level {level}: a number"):
        settle({"level": level})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "--steps 0: at least 1"),
        ({"batch_size": 0}, "--batch-size 0: at least 1"),
        ({"norm": "l1"}, "--norm 'l1': one of linf, l2"),
        ({"scoring": "leaf"}, "--scoring 'leaf': one of prompt, leaves, both"),
        ({"eps": "1/255,2"}, "--eps '2': must be more than 0 and at most 1"),
        ({"step_size": "0"}, "--step-size '0': must be more than 0"),
    ],
)
def test_a_wrong_option_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settle(given)


def test_options_have_the_terms_of_the_engine() -> None:
    """The options are read before anything heavy is; so they name scorings and norms themselves."""
    from hrzs.attacks import ATTACKS
    from hrzs.attacks.budget import NORMS

    assert EvalOptions().scorings == SCORINGS
    said = {name: field.metadata["option"] for name, field in EvalOptions.__dataclass_fields__.items()}
    assert said["scoring"].choices == (*SCORINGS, "both")
    assert said["norm"].choices == NORMS
    assert set(SUITE) <= set(ATTACKS)
    assert all(option.help.endswith(".") for option in said.values())


# -- units --------------------------------------------------------------------------------------------------------


def test_plan_of_the_suite(task: Task) -> None:
    leaf, every = ("leaf-pgd", 0, "prompt"), ("hierarchical-pgd", "all", "prompt")
    superclass = [("superclass-pgd", level, scoring) for level in (1, 2) for scoring in ("prompt", "leaves")]
    margin = [("cw", *rest) for rest in ((0, "prompt"), *((level, scoring) for _, level, scoring in superclass))]
    assert names(plan(task, EvalOptions(level="all"))) == [leaf, *superclass, every, *margin]
    assert names(plan(task, EvalOptions())) == [leaf, *superclass[:2], every, margin[0]]
    assert names(plan(task, EvalOptions(attack=("superclass-pgd",), level=2, scoring="leaves"))) == superclass[3:]
    assert names(plan(task, EvalOptions(attack=("none",)))) == []


def test_plan_takes_epsilon_from_the_data_unless_told(task: Task) -> None:
    assert {u.eps for u in plan(task, EvalOptions())} == {EPS}
    given = (Fraction(1, 255), Fraction(2, 255))
    assert {u.eps for u in plan(task, EvalOptions(eps=given))} == set(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attack": ("leaf-pdg",)}, "--attack 'leaf-pdg'"),
        ({"level": 3}, "--level 3: this tree has levels 0 … 2"),
        ({"level": "-1"}, "--level -1"),
        ({"level": "low"}, "--level low"),
        ({"attack": ("leaf-pgd",), "level": 1}, "--level 1: leaf-pgd does not attack that level"),
        ({"attack": ("superclass-pgd",), "level": 0}, "--level 0: superclass-pgd does not attack that level"),
    ],
)
def test_plan_refuses(task: Task, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(task, settle(options))


def test_flat_tree_has_no_superclass_to_attack(task: Task, flat: Tree) -> None:
    with pytest.raises(UsageError, match="no level between leaves and root"):
        plan(replace(task, tree=flat), EvalOptions(attack=("superclass-pgd",)))
    assert len(plan(replace(task, tree=flat), EvalOptions(attack=("leaf-pgd",)))) == 1
