"""Draw small edits of the source at random and list those that the tests beside them let through.

    python -m tests.mutations.draw --seed 1 --count 50

Each edit is made in a copy of the repository. Results are appended to a file of JSON lines as they come: the same
command goes on where it was interrupted, and a larger --count continues the same draw. --again tries what survived once
more, after a test was added.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.mutations.beside import DEFAULTS, files_beside
from tests.mutations.edits import Edit, edits
from tests.mutations.trial import Copy, Verdict, preload, same_test

ROOT = Path(__file__).parents[2]


def all_edits(root: Path) -> list[Edit]:
    """Return every edit of every source but the lists of public names, in an order that is always the same."""
    sources = (path for path in (root / "src" / "scaling").rglob("*.py") if path.name != "__init__.py")
    paths = sorted(path.relative_to(root).as_posix() for path in sources)
    return [edit for path in paths for edit in edits(path, (root / path).read_text())]


def draw(found: Sequence[Edit], seed: int, count: int) -> list[Edit]:
    """Return `count` of the edits: each time first a kind, then one of that kind. A larger count begins alike."""
    generator = random.Random(seed)
    left: defaultdict[str, list[Edit]] = defaultdict(list)
    for edit in found:
        left[edit.kind].append(edit)
    drawn: list[Edit] = []
    while len(drawn) < count and left:
        kind = generator.choice(sorted(left))
        drawn.append(left[kind].pop(generator.randrange(len(left[kind]))))
        if not left[kind]:
            del left[kind]
    return drawn


def files_for(edit: Edit, root: Path) -> tuple[str, ...]:
    """Return the test files that an edit has to be caught by."""
    beside = files_beside(edit.path, root)
    return (DEFAULTS, *beside) if edit.is_default else beside


def text_of(edit: Edit) -> str:
    """Return an edit on one line."""
    before, after = (" ".join(text.split()) for text in (edit.before, edit.after))
    return f"{edit.path}:{edit.line}:{edit.column} {edit.kind}: {before} -> {after}"


class Results:
    """What became of edits, kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self._known = {self._key(entry["seed"], entry["edit"]): entry for entry in map(json.loads, lines)}

    def _key(self, seed: int, edit: str) -> tuple[int, str]:
        return seed, edit

    def find(self, seed: int, edit: Edit) -> dict[str, Any] | None:
        """Return the latest result of an edit."""
        return self._known.get(self._key(seed, text_of(edit)))

    def sound(self) -> set[str]:
        """Return the tests that are known to pass without an edit."""
        caught = (entry["failed"] for entry in self._known.values() if entry["outcome"] == "caught")
        return {same_test(failed) for failed in caught if "::" in failed}

    def add(self, seed: int, edit: Edit, **values: Any) -> None:
        """Append a result."""
        entry = {"seed": seed, "edit": text_of(edit), **values}
        self._known[self._key(seed, text_of(edit))] = entry
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


class Judge:
    """Says of an edit whether tests notice it. What fails without the edit too has noticed nothing."""

    def __init__(self, copy: Copy, limit: float, sound: set[str]) -> None:
        self._copy = copy
        self._limit = limit
        self._sound: dict[tuple[str, ...], bool] = {(test,): True for test in sound}

    def judge(self, edit: Edit, tests: Sequence[str]) -> tuple[str, Verdict]:
        """Return `caught`, `survived` or `broken`, and the verdict on the edited tree."""
        with self._copy.edited(edit):
            verdict = self._copy.run(tests, limit=self._limit)
        if verdict.failed is None:
            return ("survived" if verdict.ran else "broken"), verdict
        again = (same_test(verdict.failed),) if "::" in verdict.failed else tuple(tests)
        if again not in self._sound:
            self._sound[again] = self._copy.run(again, limit=self._limit).failed is None
        return ("caught" if self._sound[again] else "broken"), verdict


def report(seed: int, drawn: Sequence[Edit], results: Results) -> Iterator[str]:
    """Yield the lines of a summary."""
    known = [(edit, entry) for edit in drawn if (entry := results.find(seed, edit))]
    outcomes = Counter(entry["outcome"] for _, entry in known)
    hung = sum(entry["timed_out"] for _, entry in known)
    seconds = sum(entry["seconds"] for _, entry in known)
    yield (
        f"{len(known)} of {len(drawn)} drawn edits tried, {seconds / max(1, len(known)):.1f} s each: "
        + ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
        + (f" ({hung} by the time limit)" if hung else "")
    )
    for edit, entry in known:
        if entry["outcome"] != "caught":
            yield f"{entry['outcome']}: {text_of(edit)}   [{' '.join(entry['tests'])}]"


def main() -> None:
    """Try the drawn edits one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds per edit; what takes longer is caught")
    parser.add_argument("--results", type=Path, default=Path(tempfile.gettempdir(), "scaling_mutations.jsonl"))
    parser.add_argument("--only", default="src/scaling/", help="the sources whose path begins with this")
    parser.add_argument("--first", type=int, default=1, help="number of the first edit to try: two can share a draw")
    parser.add_argument("--again", action="store_true", help="try what survived once more")
    parser.add_argument("--stop-after", type=float, default=1e9, help="seconds after which no other edit is tried")
    parser.add_argument("--list", action="store_true", help="show what is drawn, with its tests, and run nothing")
    options = parser.parse_args()
    drawn = draw([e for e in all_edits(ROOT) if e.path.startswith(options.only)], options.seed, options.count)
    if options.list:
        for edit in drawn:
            print(text_of(edit), f"  [{' '.join(files_for(edit, ROOT))}]")
        return
    began, results = time.monotonic(), Results(options.results)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # removes the copy
    preload()
    with tempfile.TemporaryDirectory(prefix="scaling_mutations_") as directory:
        judge = Judge(Copy(ROOT, Path(directory)), options.limit, results.sound())
        for number, edit in enumerate(drawn, start=1):
            known = results.find(options.seed, edit)
            if number < options.first or (known and not (options.again and known["outcome"] != "caught")):
                continue
            if time.monotonic() - began > options.stop_after:
                break
            tests = files_for(edit, ROOT)
            outcome, verdict = judge.judge(edit, tests)
            results.add(options.seed, edit, outcome=outcome, tests=tests, **vars(verdict))
            print(f"{number:4} {outcome:8} {verdict.seconds:5.1f} s  {text_of(edit)}", flush=True)
            print(f"{'':14} [{' '.join(tests)}] {verdict.failed or ''}", flush=True)
    print("\n".join(report(options.seed, drawn, results)))


if __name__ == "__main__":
    main()
