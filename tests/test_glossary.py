"""docs/glossary.md: sorted, each word once; the words that it sends the reader to are there."""

from __future__ import annotations

import re

from tests.test_documentation import REPOSITORY

TEXT = (REPOSITORY / "docs/glossary.md").read_text()
ENTRIES = re.findall(r"^\*\*(.+?)\*\*(.*?): ", TEXT, re.MULTILINE)


def test_words_are_in_alphabetical_order_and_come_once() -> None:
    found = [re.sub(r"[^a-z0-9 ]", "", f"{word}{rest}".lower()) for word, rest in ENTRIES]
    assert found == sorted(found)
    assert len(set(found)) == len(found) > 100


def test_words_that_an_entry_refers_to_are_explained() -> None:
    words = {word.lower() for word, _ in ENTRIES}
    emphasised = re.findall(r"(?<!\*)\*([a-z][a-z ]+)\*(?!\*)", TEXT)
    assert emphasised
    assert [word for word in emphasised if word not in words and word.removesuffix("s") not in words] == []
