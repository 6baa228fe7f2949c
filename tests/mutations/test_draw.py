"""Drawn edits: the same for a seed, each a program that differs, none of what no test should hold, all with tests."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from textwrap import dedent

from tests.mutations.beside import BESIDE, DEFAULTS, files_beside
from tests.mutations.draw import ROOT, Results, all_edits, draw, files_for, text_of
from tests.mutations.edits import edits

KINDS = {
    "x = a < b": {"(a <= b)"},
    "x = a in b": {"(a not in b)"},
    "x = a and b or c": {"(a or b)", "((a and b) and c)"},
    "x = not a": {"(a)"},
    "x = a + b": {"(a - b)"},
    "x = -a": {"(a)"},
    "x = 3": {"4", "2"},
    "x = -1": {"2", "0"},
    "x = True": {"False"},
    "x = 0.5": {"1.0"},
    "f(a, b)": {"f(b, a)", "pass"},
    "x[0] = y": {"1", "(-1)", "pass"},
    "raise KeyError(1 + 1)": {"pass"},
    "def f(a=1): return a": {"2", "0"},
    "class A:\n    b: int = 1": {"2", "0"},
}

NOTHING = '''
"""Text 1 + 1."""
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    x = 1
TEXT = f"{1 + 1}" + "2"
@mark(frozen=True)
class A:
    """Text."""
    field: Literal[1]
    def __repr__(self): return str(1 + 1)
    def stub(self, start: int = 0):
        """Say nothing."""
        ...
_log.info("%d", 1 + 1)
for pair in zip(*a, strict=True):
    assert pair > 1
    yield Problem("name", f"{1}")
'''


def test_each_kind_of_slip_is_made_and_nothing_that_is_only_said() -> None:
    assert {text: {edit.after for edit in edits("x.py", text)} for text in KINDS} == KINDS
    assert [edit.before for edit in edits("x.py", NOTHING)] == ['yield Problem("name", f"{1}")']
    (edit,) = edits("x.py", "x = 'ä', a < b")  # places are counted in characters, not in bytes
    assert edit.apply("x = 'ä', a < b") == "x = 'ä', (a <= b)"


def test_which_edits_change_a_default_is_known() -> None:
    text = dedent(
        """
        LIMIT: Final = 4
        _SIZE = 5
        x = 6
        class A:
            field: int = Field(default=1)
            def f(self, a=2):
                return 3
        """
    )
    assert {edit.before: edit.is_default for edit in edits("x.py", text)} == {
        "1": True,
        "2": True,
        "3": False,
        "4": True,
        "5": True,
        "6": False,
    }


def test_a_seed_draws_the_same_edits_and_a_larger_count_begins_alike(tmp_path: Path) -> None:
    found = all_edits(ROOT)
    assert len({text_of(edit) + str(edit.stop) for edit in found}) == len(found) > 5000
    drawn = draw(found, 5, 300)
    assert drawn == draw(found, 5, 300) != draw(found, 6, 300)
    assert drawn[:100] == draw(found, 5, 100)
    assert len({*drawn}) == 300
    for edit in drawn:
        text = (ROOT / edit.path).read_text()
        assert ast.dump(ast.parse(edit.apply(text))) != ast.dump(ast.parse(text)), text_of(edit)
        assert files_for(edit, ROOT), f"{edit.path} has no test beside it; name some in beside.py"
    results = Results(tmp_path / "results")
    results.add(5, drawn[0], outcome="caught")
    again = Results(tmp_path / "results")
    assert (again.find(5, drawn[0]) or {})["outcome"] == "caught"
    assert again.find(6, drawn[0]) is again.find(5, drawn[1]) is None
    assert json.loads((tmp_path / "results").read_text())["edit"] == text_of(drawn[0])


def test_every_source_has_files_beside_it() -> None:
    for source in BESIDE:
        assert (ROOT / f"src/scaling/{source}.py").exists(), f"beside.py names {source}, which is gone"
        named = files_beside(f"src/scaling/{source}.py", ROOT)
        assert len(set(named)) == len(named), f"beside.py names the test of {source} itself"
    for path in sorted({edit.path for edit in all_edits(ROOT)}):
        tests = files_beside(path, ROOT)
        assert tests, f"{path} has no test beside it; name some in beside.py"
        assert [test for test in (*tests, DEFAULTS) if not (ROOT / test).exists()] == []
