"""Read the files that a run has left in its folder, even if they are unfinished, cut off or of an earlier version."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard

from scaling.core.config.yaml_text import parse_yaml
from scaling.core.errors import ConfigError
from scaling.core.logging.metrics_files import METRICS_FILE, previous_file, repeated_file
from scaling.core.logging.run_file import ATTEMPTS, RUN_FILE, read_run_file
from scaling.core.logging.run_state import RUN_STATE_FILE, RunPhase, RunState
from scaling.core.report.series import Series, last_of_each_step

CONFIG_FILE: Final = "config.yml"
EVENTS_FILE: Final = "events.jsonl"
PROFILE_FILE: Final = "profile.json"
_KNOWN: Final = (METRICS_FILE, RUN_FILE, RUN_STATE_FILE, CONFIG_FILE, EVENTS_FILE)
_MAX_PROFILE_BYTES: Final = 256 * 2**20
_MAX_LOG_BYTES: Final = 16 * 2**20
_LAST_LINES: Final = 25
_LAST_BYTES: Final = 16 * 2**10
_RANK: Final = re.compile(r"\brank (\d{1,7})\b")
_RESUMED: Final = re.compile(r"resumed from .* at step (\d{1,15})$")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is known about one run. A field is empty or None where its folder lacks the data, and `notes` say so."""

    folder: Path
    series: Mapping[str, Series]
    """By the metric names in `metrics.jsonl`, with each step once."""
    again: Mapping[str, Series]
    """Of steps repeated after a restart, the values measured the first time."""
    events: Sequence[Mapping[str, Any]]
    state: RunState | None
    about: Mapping[str, Any]
    """The contents of `run.json`."""
    config: Mapping[str, Any] | None
    config_text: str
    profile: Mapping[str, Any] | None
    restarts: Sequence[int]
    """The steps of the checkpoints from which the run resumed."""
    last_words: LastWords | None
    """The last lines of the log of the rank at fault, where the run has failed."""
    notes: Sequence[str]
    """Oddities of the folder, for the reader."""

    @property
    def last_step(self) -> int:
        """Return the last step that anything is known about."""
        steps = [int(series.steps[-1]) for series in self.series.values() if len(series)]
        told = self.state.step if self.state and _is_step(self.state.step) else 0
        return max([told, *steps])

    @property
    def attempts(self) -> Sequence[Mapping[str, Any]]:
        """Return the outcome of each attempt of the last command, as far as it was written down."""
        found = self.about.get(ATTEMPTS)
        return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


@dataclass(frozen=True)
class LastWords:
    """The end of a log."""

    file: str
    lines: Sequence[str]


def read_run(folder: Path) -> Run:
    """Read a folder that `logger.log_dir` has named. Nothing is written, so the run may continue meanwhile.

    Raises:
        ConfigError: The folder does not exist, or holds nothing of a run.
    """
    _require_run(folder)
    notes: list[str] = []
    lines = _numbers(folder / METRICS_FILE, notes)
    kept = {name: last_of_each_step(series) for name, series in lines.items()}
    again = {name: former for name, (_, former) in kept.items() if len(former)}
    if again:
        notes.append(f"{METRICS_FILE} has some steps twice; what was written last is shown, the rest as a dashed line")
    for name, series in _numbers(repeated_file(folder / METRICS_FILE), notes, must_be_there=False).items():
        again[name] = series
    if (previous := previous_file(folder / METRICS_FILE, 1)).exists():
        notes.append(f"{previous.name} holds an earlier run of this folder; it is not shown")
    config, config_text = _read_config(folder / CONFIG_FILE, notes)
    about = read_run_file(folder)
    if not about:
        notes.append(f"{RUN_FILE} is missing or cannot be read: versions, hardware and layout are not known")
    state = RunState.read(folder)
    if state is None:
        notes.append(f"{RUN_STATE_FILE} is missing or cannot be read: how the run ended is not known")
    events = list(_objects(folder / EVENTS_FILE, notes, must_be_there=False))
    return Run(
        folder=folder,
        series={name: series for name, (series, _) in kept.items()},
        again=again,
        events=events,
        state=state,
        about=about,
        config=config,
        config_text=config_text,
        profile=_read_profile(folder, config, notes),
        restarts=_restarts(folder, events),
        last_words=_last_words(folder, state),
        notes=notes,
    )


def _require_run(folder: Path) -> None:
    if not folder.exists():
        raise ConfigError(f"{folder} does not exist; give the folder that logger.log_dir names")
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give the folder that it is in, the one that logger.log_dir names")
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read ({error.strerror}); make it readable, or copy it") from error
    if names.isdisjoint(_KNOWN):
        what = "holds nothing of a run" if names else "is empty"
        near = [path for path in (folder.parent, *sorted(folder.glob("*"))) if (path / METRICS_FILE).is_file()]
        hint = f"; did you mean {near[0]}?" if near else "; give the folder that logger.log_dir names"
        raise ConfigError(f"{folder} {what}: none of {', '.join(_KNOWN)} is in it{hint}")


def _objects(path: Path, notes: list[str], *, must_be_there: bool = True) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines. Lines that cannot be read are left out and noted."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        if must_be_there:
            notes.append(f"{path.name} is missing: the run has not finished a step, or the file was not copied")
        return
    except OSError as error:
        notes.append(f"{path.name} cannot be read ({error.strerror})")
        return
    lines = text.split("\n")
    bad: list[int] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            yield value
        elif number == len(lines):
            notes.append(f"the last line of {path.name} is cut off: the run was writing it, or was killed meanwhile")
        else:
            bad.append(number)
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        notes.append(f"{path.name}: line {', '.join(map(str, bad[:3]))}{more} cannot be read, and is left out")


def _numbers(path: Path, notes: list[str], *, must_be_there: bool = True) -> dict[str, Series]:
    """Return every metric of a file, in the order of its lines."""
    steps: defaultdict[str, list[int]] = defaultdict(list)
    values: defaultdict[str, list[float]] = defaultdict(list)
    without_step = 0
    for line in _objects(path, notes, must_be_there=must_be_there):
        step = line.pop("step", None)
        if not _is_step(step):
            without_step += 1
            continue
        for name, value in line.items():
            if isinstance(value, (int, float)):
                steps[name].append(step)
                values[name].append(_as_float(value))
    if without_step:
        notes.append(f"{path.name}: {without_step} lines name no step, and are left out")
    return {name: Series.of(steps[name], values[name]) for name in steps}


def _is_step(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**53


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _read_config(path: Path, notes: list[str]) -> tuple[dict[str, Any] | None, str]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        return parse_yaml(text)[0], text
    except OSError:
        notes.append(f"{path.name} is missing: the configuration is not known")
    except ConfigError as error:
        notes.append(f"{path.name} cannot be read: {error}")
    return None, ""


def _read_profile(folder: Path, config: Mapping[str, Any] | None, notes: list[str]) -> dict[str, Any] | None:
    """Return the timeline that `profiler.profiler_output` names, wherever the folder may be now."""
    section = (config or {}).get("profiler")
    given = section.get("profiler_output") if isinstance(section, dict) else None
    names = [folder / Path(given).name, Path(given)] if isinstance(given, str) and given else []
    for path in (*names, folder / PROFILE_FILE):
        try:
            size = path.stat().st_size
            if size > _MAX_PROFILE_BYTES:
                notes.append(f"{path} has {size / 2**20:,.0f} MiB: too much for a page, so there is no timeline")
                return None
            value = json.loads(path.read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError) as error:
            notes.append(f"{path} cannot be read ({error}): there is no timeline")
            return None
        return value if isinstance(value, dict) else {"traceEvents": value}
    return None


def _restarts(folder: Path, events: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the step of each checkpoint the run resumed from, by its events, or by its log where there are none."""
    started = [event for event in events if event.get("event") == "started"]
    if started:
        steps = [event.get("step") for event in started if event.get("resumed_from")]
        return [step for step in steps if _is_step(step)]
    try:
        with (folder / "rank_0.log").open("rb") as file:
            text = file.read(_MAX_LOG_BYTES).decode(errors="replace")
    except OSError:
        return []
    return [int(found[1]) for line in text.splitlines() if (found := _RESUMED.search(line))]


def _last_words(folder: Path, state: RunState | None) -> LastWords | None:
    if state is None or state.state is not RunPhase.FAILED:
        return None
    found = _RANK.search(str(state.reason))
    rank = int(found[1]) if found else 0
    for name in (f"rank_{rank}.log", "rank_0.log"):
        try:
            with (folder / name).open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - _LAST_BYTES))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            continue
        if lines:
            return LastWords(name, lines[-_LAST_LINES:])
    return None
