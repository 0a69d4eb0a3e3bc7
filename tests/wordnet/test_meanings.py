from __future__ import annotations

import pytest

from hrzs.errors import UsageError
from hrzs.wordnet.meanings import Meanings


def test_words_are_the_lemmas_and_kinds_the_hypernyms() -> None:
    meanings = Meanings()
    assert meanings.words("n02959942") == ("car", "railcar", "railway car", "railroad car")
    assert meanings.kinds("n02012849")[:3] == ("wading bird", "aquatic bird", "bird")
    assert meanings.kinds("n02012849")[-1] == "entity"


def test_an_id_that_wordnet_has_not_means_nothing() -> None:
    assert Meanings().words("n00000001") == Meanings().kinds("n00000001") == ()


def test_wordnet_is_opened_at_the_first_question() -> None:
    meanings = Meanings("no/such/folder")
    with pytest.raises(UsageError, match="--wordnet no/such/folder"):
        meanings.words("n02012849")
