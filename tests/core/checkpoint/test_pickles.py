"""Pickles that would call something are recognised without being loaded, and nothing else is."""

from __future__ import annotations

import pickle
import random
from collections import OrderedDict
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from scaling.core.checkpoint.pickles import may_unpickle_to_code

HAND_MADE = {
    "a call": b"cos\nsystem\n(S'true'\ntR.",
    "a call of what a mark holds": b"(cos\nsystem\nS'true'\no.",
    "import and call at once": b"(S'true'\nios\nsystem\n.",
    "no end": b"cos\nsystem\n(S'true'\ntR",
    "an import alone": b"cantigravity\nfly\n.",
    "something that is thrown away before": b"N0(0I31\n0L5L\n0F-inf\n0cos\nsystem\n)R.",
    "a harmless one before": b"(lp0\n.cos\nsystem\n)R.",
    "new operations without their protocol": b"\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
}

HARMLESS = {
    "nothing": b"",
    "letters of operations": b"checkpoint of the last run\nconfiguration\n(see above)",
    "two lines that could be a name": b"config\nyaml\noptimizer\n",
    "a list": b"(i) first\n(ii) second\n",
    "numbers": b"Fast: 1\nIt was 2\nLong: 3\nFunctions\n" * 10**4,
    "json": b'{"loss": 2.5}',
    "yaml": b"a: 1\nb: [c, d]\n",
    "zeros": bytes(4096),
    "more taken than there is": b"0cos\nsystem\n)R.",
    "cut off": b"X\xff\xff\xff\x7fabc",
}


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return date.fromisoformat, ("2000-01-01",)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value", [Bomb(), [1, 2.5, "x", None, True, -(10**40), Bomb()], OrderedDict({("é" * 300): b"x"})]
)
def test_pickles_that_call_are_known_whatever_their_protocol(path: Path, protocol: int, value: Any) -> None:
    path.write_bytes(pickle.dumps(value, protocol))
    assert may_unpickle_to_code(path)


@pytest.mark.parametrize("data", HAND_MADE.values(), ids=HAND_MADE)
def test_pickles_made_by_hand_are_known(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    assert may_unpickle_to_code(path)


@pytest.mark.parametrize("data", HARMLESS.values(), ids=HARMLESS)
def test_other_files_are_not_taken_for_pickles(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    assert not may_unpickle_to_code(path)


def test_the_files_of_this_repository_are_not_taken_for_pickles() -> None:
    root = Path(__file__).parents[3]
    files = [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("src/**/*.py")]
    assert len(files) > 100
    assert not [path for path in files if may_unpickle_to_code(path)]


def test_random_bytes_are_not_taken_for_pickles(path: Path) -> None:
    generator = random.Random(0)
    for _ in range(2000):
        path.write_bytes(generator.randbytes(200))
        assert not may_unpickle_to_code(path)


def test_a_pickle_without_an_import_is_harmless(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": [1, (2, 3)]}, 0))
    assert not may_unpickle_to_code(path)
