"""The texts of the acceptance study, as this installation has them."""

from __future__ import annotations

import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from acceptance_study.texts import Text, collect_texts

MIN_CHARS, MAX_TEXTS = 2000, 3


@pytest.fixture(scope="module")
def texts() -> list[Text]:
    return collect_texts(MIN_CHARS, MAX_TEXTS)


def test_every_kind_of_text_is_found(texts: list[Text]) -> None:
    found = Counter(text.source for text in texts)
    assert len(found) >= 4
    assert max(found.values()) == MAX_TEXTS


def test_a_text_is_as_long_as_asked_for(texts: list[Text]) -> None:
    assert {len(text.content) for text in texts} == {MIN_CHARS}


def test_no_text_comes_twice(texts: list[Text]) -> None:
    """Texts are the study's independent draws."""
    assert max(Counter((text.source, text.name) for text in texts).values()) == 1
    assert max(Counter(text.content for text in texts).values()) == 1


def test_the_texts_are_the_same_every_time(texts: list[Text]) -> None:
    assert collect_texts(MIN_CHARS, MAX_TEXTS) == texts


def test_short_documents_are_joined() -> None:
    """No module of the standard library is so long by itself."""
    largest = max(path.stat().st_size for path in Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    (joined,) = [text for text in collect_texts(largest + 1, 1) if text.source == "source"]
    assert len(joined.content) == largest + 1
