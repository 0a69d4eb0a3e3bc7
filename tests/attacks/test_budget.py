from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrzs.attacks.budget import Budget, default_step_size, format_eps, parse_eps
from hrzs.errors import UsageError

radii = st.fractions(0, 1, max_denominator=10**9).filter(lambda eps: eps > 0)


@pytest.mark.parametrize(
    ("text", "eps"),
    [
        ("1/255", Fraction(1, 255)),
        ("4/255", Fraction(4, 255)),
        (" 2/255 ", Fraction(2, 255)),
        ("0.0039", Fraction(39, 10_000)),
        ("1e-3", Fraction(1, 1000)),
        ("1", Fraction(1)),
    ],
)
def test_parse_is_exact(text: str, eps: Fraction) -> None:
    assert parse_eps(text) == eps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "more than 0"),
        ("-1", "more than 0"),
        ("-1/255", "more than 0"),
        ("2", "at most 1.*write 2/255"),
        ("4", "at most 1.*4/255"),
        ("1.5", "at most 1"),
        ("256/255", "at most 1"),
        ("abc", "not a number; write 1/255"),
        ("1/0", "not a number"),
        ("", "not a number"),
        ("nan", "not a number"),
        ("inf", "not a number"),
        ("1/255/2", "not a number"),
        ("1e-999999999", "not a number"),
        ("1" * 10000, "not a number"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"--eps.*{message}") as error:
        parse_eps(text)
    assert repr(text) in str(error.value)


def test_option_is_named() -> None:
    with pytest.raises(UsageError, match=r"--step-size '0'"):
        parse_eps("0", option="--step-size")


def test_l2_may_exceed_the_pixel_range() -> None:
    assert parse_eps("3", norm="l2") == 3
    with pytest.raises(UsageError, match=r"more than 0$"):
        parse_eps("-3", norm="l2")


@given(radii)
def test_round_trip(eps: Fraction) -> None:
    assert parse_eps(format_eps(eps)) == eps
    assert parse_eps(str(eps)) == eps


@given(st.integers(1, 255))
def test_over_255_as_the_field_writes_it(k: int) -> None:
    assert format_eps(Fraction(k, 255)) == f"{k}/255"


def test_other_fractions_stay_as_they_are() -> None:
    assert format_eps(parse_eps("0.0039")) == "39/10000"


@given(radii)
def test_default_step_size(eps: Fraction) -> None:
    assert default_step_size(eps) == (eps / 4 if eps >= Fraction(4, 255) else Fraction(1, 255))


@pytest.mark.parametrize(
    ("change", "message"), [({"norm": "l1"}, "--norm 'l1'.*linf, l2"), ({"steps": 0}, "--steps 0")]
)
def test_budget_checks(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Budget(**{"eps": Fraction(1, 255), "step_size": Fraction(1, 255), "steps": 3} | change)
