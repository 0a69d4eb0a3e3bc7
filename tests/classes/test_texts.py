import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hrzs.classes.texts import Texts, taken, utf8_of

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=9)


@given(texts=TEXTS, data=st.data())
def test_texts_are_the_list_that_they_were_made_of(texts: list[str], data: st.DataObject) -> None:
    made = Texts.of(texts)
    assert made == texts
    assert (made == [*texts, ""]) is False
    assert [*made] == texts == [made[i] for i in range(len(texts))]
    assert [*utf8_of(made)] == [*utf8_of(texts)]
    assert pickle.loads(pickle.dumps(made)) == texts
    start = data.draw(st.integers(-9, 9))
    assert made[start:] == texts[start:]
    assert made[::-1] == texts[::-1]
    indices = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=9) if texts else st.just([]))
    assert taken(made, indices) == taken(texts, indices) == [texts[i] for i in indices]
    assert taken(made, indices)[:2] == taken(texts, indices)[:2]


@given(parts=st.lists(TEXTS, min_size=1, max_size=4))
def test_joined(parts: list[list[str]]) -> None:
    whole = [text for part in parts for text in part]
    assert Texts.joined([Texts.of(part) for part in parts]) == whole
    prefixed = Texts.of(f"ö{'x' * i}{text}" for i, text in enumerate(whole))
    assert prefixed.without_start(np.arange(len(whole)) + 2) == whole


def test_a_large_number_of_texts() -> None:
    texts = [str(i) for i in range(25_001)]
    made = Texts.of(texts)
    assert made == texts
    assert repr(made) == "Texts(['0', '1', '2', …])"
