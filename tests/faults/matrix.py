"""The fault matrix: each case says beforehand how it must end, and every other end is counted against the library."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from tests.faults.engine import Scene

State = Mapping[str, Any]
"""What a run came to: tensors by name, and numbers. Equal states are equal in every bit."""


@dataclass(frozen=True)
class Survive:
    """The run is finished, if need be by starting it again, and what it came to is that of the undisturbed run."""

    within: float = 0.0
    """Largest deviation, relative to the largest value of a tensor. 0: equal in every bit."""

    def __str__(self) -> str:
        return "survive" if self.within == 0 else f"survive ({self.within:g})"


@dataclass(frozen=True)
class Refuse:
    """The program ends with this status and a message that matches, and writes nothing."""

    status: int
    message: str

    def __str__(self) -> str:
        return f"refuse ({self.status})"


@dataclass(frozen=True)
class End:
    """How a program ended."""

    status: int
    message: str = ""
    hung: bool = False
    state: State | None = None
    loaded: State | None = None
    """The state it went on from, before the first step."""


@dataclass(frozen=True)
class Case:
    """One fault, how it must end, and how to bring it about."""

    group: str
    name: str
    expected: Survive | Refuse
    play: Callable[[Scene], End]
    """Bring the fault about and return the end that counts: of the run that finishes, or of the one that refuses."""

    def __str__(self) -> str:
        return f"{self.group} {self.name}"


class Verdict(str, Enum):
    """What became of a case. Everything but the first two fails."""

    SURVIVED = "survived"
    REFUSED = "refused"
    SILENT = "SILENT"
    """It went on as if nothing were wrong, and came to something else or left something behind."""
    HANG = "HANG"
    CRASH = "CRASH"
    """It ended otherwise than declared."""


@dataclass(frozen=True)
class Result:
    """The verdict on a case, and why."""

    group: str
    name: str
    expected: str
    verdict: Verdict
    reason: str

    @property
    def is_good(self) -> bool:
        return self.verdict in (Verdict.SURVIVED, Verdict.REFUSED)


class Unexpected(Exception):
    """A case did not go as it had to on the way to its end."""

    def __init__(self, reason: str, verdict: Verdict = Verdict.CRASH) -> None:
        super().__init__(reason)
        self.verdict = verdict


def judge(case: Case, scene: Scene) -> Result:
    """Play a case and compare its end with the declared one."""
    try:
        verdict, reason = _verdict(case.expected, case.play(scene), scene)
    except Unexpected as error:
        verdict, reason = error.verdict, str(error)
    return Result(case.group, case.name, str(case.expected), verdict, reason)


def _verdict(expected: Survive | Refuse, end: End, scene: Scene) -> tuple[Verdict, str]:
    if end.hung:
        return Verdict.HANG, end.message
    match expected:
        case Survive():
            if end.status != 0 or end.state is None:
                return Verdict.CRASH, f"status {end.status}: {end.message}"
            if differing := differences(end.state, scene.expected, within=expected.within):
                return Verdict.SILENT, "other than undisturbed: " + ", ".join(differing)
            return Verdict.SURVIVED, ""
        case Refuse():
            if end.status == 0:
                return Verdict.SILENT, "accepted"
            if end.status != expected.status or not re.search(expected.message, end.message):
                return Verdict.CRASH, f"status {end.status}: {end.message}"
            if written := scene.written():
                return Verdict.SILENT, "written although refused: " + ", ".join(written)
            return Verdict.REFUSED, end.message.splitlines()[0][:200]


def differences(found: State, wanted: State, *, within: float = 0.0) -> list[str]:
    """Return the names of values that differ, at most five."""
    names = sorted(found.keys() | wanted.keys())
    differing = [
        name
        for name in names
        if name not in found or name not in wanted or not _agree(found[name], wanted[name], within)
    ]
    return differing[:5]


def _agree(found: Any, wanted: Any, within: float) -> bool:
    if not isinstance(found, torch.Tensor) or not isinstance(wanted, torch.Tensor):
        return bool(found == wanted)
    if within == 0 or found.shape != wanted.shape:
        return torch.equal(found, wanted)
    scale = max(float(wanted.abs().max()), 1e-30) if wanted.numel() else 1.0
    return bool(((found - wanted).abs() <= within * scale).all())


def contents(folder: Path, *, without: Sequence[str] = ()) -> dict[str, str]:
    """Return a digest for every file below a folder, except below the named ones, and a mark for every other entry."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[0] in without:
            continue
        plain = path.is_file() and not path.is_symlink()
        found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest() if plain else "no file"
    return found


def table(results: Sequence[Result]) -> list[str]:
    """Return the lines of the table, and the figure last."""
    widths = [max(len(text) for text in column) for column in zip(*map(_row, results), strict=True)]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(_row(result), widths, strict=True)) for result in results
    ]
    for group, count in sorted(Counter(result.group for result in results).items()):
        good = sum(result.is_good for result in results if result.group == group)
        lines.append(f"group {group}: {good}/{count}")
    return [line.rstrip() for line in (*lines, figure(results))]


def figure(results: Sequence[Result]) -> str:
    """Return the figure that counts."""
    return f"faults survived or refused / tried: {sum(result.is_good for result in results)}/{len(results)}"


def to_json(results: Sequence[Result]) -> str:
    """Return the results for programs."""
    counts = Counter(result.verdict.value for result in results)
    return json.dumps(
        {"figure": figure(results), "counts": counts, "cases": [asdict(one) for one in results]}, indent=1
    )


def _row(result: Result) -> tuple[str, ...]:
    return (result.group, result.name, result.expected, result.verdict.value, result.reason.replace("\n", " ")[:100])
