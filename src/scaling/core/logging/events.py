"""Events of a run: each is a line that stays in the log, and a JSON object in `events.jsonl`."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Final, final

from typing_extensions import Self

from scaling.core.logging.line import plain_number
from scaling.core.logging.run_state import RunPhase, describe_error
from scaling.core.storage.json_values import Json
from scaling.core.storage.writing import append_whole

_log = logging.getLogger(__name__)

EVENTS_FILE: Final = "events.jsonl"
"""In `logger.log_dir`: a line for each event of all attempts, from rank 0."""

_EVALUATION: Final = "evaluation/"


class EventKind(str, Enum):
    """The kind of an event."""

    STARTED = "started"
    EVALUATION = "evaluation"
    CHECKPOINT = "checkpoint"
    CHECKPOINT_FAILED = "checkpoint_failed"
    SKIPPED = "skipped"
    NONFINITE = "nonfinite"
    LEAVING = "leaving"
    ENDED = "ended"


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened in a run, after `step`."""

    kind: EventKind
    step: int
    fields: Mapping[str, Json] = field(default_factory=dict)
    level: int = logging.INFO
    said: str | None = None
    """The line for people. None: the fields as `name value` pairs; empty: no line, since another message reports the
    event."""

    def line(self, total_steps: int) -> str:
        """Return the line that stays in the log; empty for none."""
        if self.said is not None:
            return self.said
        pairs = [
            f"{name} {plain_number(value) if isinstance(value, float) else value}"
            for name, value in self.fields.items()
            if value is not None
        ]
        return " ".join([f"step {self.step}/{total_steps}", self.kind.value, *pairs])

    def as_dict(self) -> dict[str, Json]:
        """Return the event as it is written to `events.jsonl`."""
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        return {"time": now, "step": self.step, "event": self.kind.value, **self.fields}


def events_of_metrics(step: int, metrics: Mapping[str, float]) -> Iterator[Event]:
    """Yield the events in the metrics of a step: a skipped update, a loss that is not finite, an evaluation."""
    norm, loss = metrics.get("training/global_grad_norm", 0.0), metrics.get("training/loss", 0.0)
    if not math.isfinite(norm):
        scale = metrics.get("training/loss_scale")
        reason = "the gradients were not finite"
        if scale is not None:  # overflows are part of the search for the scale, which is lowered now
            reason = f"the gradients overflowed at a loss scale of {plain_number(scale)}"
        level = logging.WARNING if scale is None else logging.INFO
        yield Event(kind=EventKind.SKIPPED, step=step, fields={"reason": reason}, level=level)
    if not math.isfinite(loss):
        yield Event(kind=EventKind.NONFINITE, step=step, fields={"what": "the loss"}, level=logging.WARNING)
    evaluation: dict[str, Json] = {
        name.removeprefix(_EVALUATION): value for name, value in metrics.items() if name.startswith(_EVALUATION)
    }
    if evaluation:
        yield Event(kind=EventKind.EVALUATION, step=step, fields=evaluation)


@final
class EventLog:
    """Log of the events of a run: rank 0 logs each as a line and appends it to `events.jsonl` in `log_dir`.

    Other ranks log and write nothing. Evaluations are an exception: their lines are logged by the ranks with
    `prints_metrics`. The log is also a sink of metrics, from which it derives events. If the file cannot be written,
    events are lost, which is reported once, and the run continues. A call of `end` records how the run ended well; as a
    context manager the log also records an exception as a failure, or Ctrl-C as a pre-emption. Without `log_dir`
    nothing is written.
    """

    def __init__(
        self, log_dir: Path | None = None, *, rank: int = 0, total_steps: int = 0, prints_metrics: bool = True
    ) -> None:
        self._path = log_dir / EVENTS_FILE if log_dir is not None and rank == 0 else None
        self._is_first = rank == 0
        self._prints_metrics = prints_metrics
        self._total = total_steps
        self._step = 0
        self._is_open = self._is_broken = False

    def tell(self, event: Event) -> None:
        """Log an event, and append it to the file."""
        self._step = max(self._step, event.step)
        is_shown = self._prints_metrics if event.kind is EventKind.EVALUATION else self._is_first
        if is_shown and (line := event.line(self._total)):
            _log.log(event.level, "%s", line)
        if self._path is not None:
            self._append(self._path, event)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the events in the metrics of a step."""
        self._step = max(self._step, step)
        for event in events_of_metrics(step, metrics):
            self.tell(event)

    def close(self) -> None:
        """Do nothing: events come after the last metrics, too."""

    def end(self, step: int, state: RunPhase, reason: str | None = None) -> None:
        """Record how the run ended. The message for people comes from elsewhere."""
        self.tell(Event(kind=EventKind.ENDED, step=step, fields={"state": state.value, "reason": reason}, said=""))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        match error:
            case None | SystemExit():
                pass
            case KeyboardInterrupt():
                self.end(self._step, RunPhase.PREEMPTED, "SIGINT")
            case _:
                self.end(self._step, RunPhase.FAILED, f"rank 0: {describe_error(error)}")

    def _append(self, path: Path, event: Event) -> None:
        try:
            if not self._is_open:
                self._is_open = True
                path.parent.mkdir(parents=True, exist_ok=True)
                _cut_unfinished(path)
            with path.open("ab", buffering=0) as file:
                append_whole(file, json.dumps(event.as_dict()).encode() + b"\n")
        except OSError as error:
            if not self._is_broken:
                self._is_broken = True
                _log.warning("events are being lost: %s cannot be written (%s)", path, error)


def _cut_unfinished(path: Path) -> None:
    """Cut off an unfinished last line, during which an earlier process was killed."""
    if path.exists():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)
