from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrzs.defences import DEFENCES, ET3, RTPT, TTC, Quantise, defences
from hrzs.defences.controls import Noise
from hrzs.errors import UsageError


def test_names_and_settings() -> None:
    assert defences([]) == ()
    assert defences(["ttc:tau=0.1:steps=4", "et3"]) == (TTC(tau=0.1, steps=4), ET3())
    assert defences(["r-tpt:views=8:rate=1e-3"]) == (RTPT(views=8, rate=1e-3),)
    given = Quantise(4)
    assert defences([given])[0] is given


@pytest.mark.parametrize("text", ["ttc:eps=0.5", "ttc:size=0.5", "ttc:beta=0.5", "et3:eps=0.5", "noise:sigma=0.5"])
def test_a_number_need_not_be_whole_where_the_default_is(text: str) -> None:
    (found,) = defences([text])
    assert text.split(":")[1] in str(found)


@pytest.mark.parametrize("name", DEFENCES)
def test_what_a_defence_prints_it_reads(name: str) -> None:
    (found,) = defences([name])
    assert found == DEFENCES[name]()
    (again,) = defences([str(found)])
    assert again == found
    assert str(again) == str(found)
    assert found.description
    assert found.adversary.endswith(".")


@given(st.floats(0, 1e6), st.floats(-1e6, 1e6), st.integers(0, 1000))
def test_every_number_is_read_as_it_is_printed(eps: float, tau: float, steps: int) -> None:
    one = TTC(eps=eps, tau=tau, steps=steps)
    assert defences([str(one)]) == (one,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tcc", "--defence 'tcc': one of ttc, r-tpt, et3, quantise, noise"),
        ("", "--defence '': one of"),
        ("TTC", "--defence 'TTC': one of"),
        ("ttc:tua=0.1", "--defence ttc:tua=0.1: 'tua=0.1' is no setting of ttc (ttc:eps=4:size=1:steps=2:tau=0.2:beta=2); did you mean tau?"),
        ("ttc:tau", "'tau' is no setting of ttc"),
        ("ttc:", "'' is no setting of ttc"),
        ("ttc:name=x", "'name=x' is no setting of ttc"),
        ("ttc:tau=", "--defence ttc:tau=: tau must be a number, not ''"),
        ("ttc:tau=much", "tau must be a number, not 'much'"),
        ("ttc:tau=nan", "tau must be a number, not 'nan'"),
        ("ttc:eps=inf", "eps must be a number, not 'inf'"),
        ("noise:sigma=nan", "sigma must be a number, not 'nan'"),
        ("ttc:steps=2.5", "steps must be a whole number, not '2.5'"),
        ("ttc:steps=" + "9" * 400, "steps must be a whole number"),
        ("ttc:eps=-1", "--defence ttc:eps=-1:size=1:steps=2:tau=0.2:beta=2: eps, size and steps cannot be negative"),
        ("ttc:size=-1", "cannot be negative"),
        ("ttc:steps=-1", "cannot be negative"),
        ("et3:eps=-1", "cannot be negative"),
        ("et3:size=-1", "cannot be negative"),
        ("et3:steps=-1", "cannot be negative"),
        ("et3:unroll=2", "unroll is 1 (yes) or 0 (no)"),
        ("quantise:values=1", "--defence quantise:values=1: values must be at least 2"),
        ("noise:sigma=-1", "--defence noise:sigma=-1: sigma cannot be negative"),
        ("r-tpt:views=1", "views and attack_views must be at least 2"),
        ("r-tpt:attack_views=1", "views and attack_views must be at least 2"),
        ("r-tpt:neighbours=0", "neighbours at least 1"),
        ("r-tpt:surest=0", "surest must be in (0, 1]"),
        ("r-tpt:surest=1.5", "surest must be in (0, 1]"),
        ("r-tpt:steps=-1", "steps not negative"),
        ("r-tpt:rate=0", "rate more than 0"),
    ],
)  # fmt: skip
def test_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        defences([text])


@pytest.mark.parametrize(
    "edge", [TTC(0.0, 0.0, 0), ET3(0.0, 0.0, 0), Quantise(2), Noise(0.0), RTPT(2, 2, 1.0, 0, 1e-9, 1)]
)
def test_edges_are_allowed(edge: object) -> None:
    assert defences([str(edge)]) == (edge,)
