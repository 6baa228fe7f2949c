"""Events: a line that stays and an object in a file, from one source, however the process ends."""

from __future__ import annotations

import io
import json
import logging
import math
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from scaling.core.errors import DataRefusedError
from scaling.core.logging.events import EVENTS_FILE, Event, EventKind, EventLog, events_of_metrics
from scaling.core.logging.run_state import RunPhase

SAVED = Event(kind=EventKind.CHECKPOINT, step=40, fields={"seconds": 0.125, "path": "saves/global_step40"})


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / EVENTS_FILE).read_text().splitlines()]


@pytest.fixture(autouse=True)
def all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_an_event_is_a_line_of_pairs_and_an_object(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    EventLog(tmp_path / "new", total_steps=300).tell(SAVED)
    assert caplog.messages == ["step 40/300 checkpoint seconds 0.125 path saves/global_step40"]
    (event,) = read(tmp_path / "new")
    time = event.pop("time")
    assert datetime.fromisoformat(time).utcoffset() is not None
    assert len(time) == len("2026-01-01T00:00:00.000+00:00")
    assert event == {"step": 40, "event": "checkpoint", "seconds": 0.125, "path": "saves/global_step40"}


def test_an_event_that_is_said_elsewhere_is_written_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = EventLog(tmp_path)
    log.tell(Event(kind=EventKind.LEAVING, step=3, said="asked to leave", level=logging.WARNING))
    log.tell(Event(kind=EventKind.STARTED, step=0, fields={"attempt": 1}, said=""))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("WARNING", "asked to leave")]
    assert [event["event"] for event in read(tmp_path)] == ["leaving", "started"]


def test_attempts_follow_each_other_in_the_file_and_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    EventLog(tmp_path).tell(SAVED)
    with (tmp_path / EVENTS_FILE).open("a") as file:
        file.write('{"time": "2026-')
    EventLog(tmp_path).tell(SAVED)
    assert [event["step"] for event in read(tmp_path)] == [40, 40]


def test_metrics_tell_of_evaluations_skipped_steps_and_losses_that_are_not_finite() -> None:
    def kinds(**metrics: float) -> list[str]:
        named = {name.replace("__", "/"): value for name, value in metrics.items()}
        return [event.line(9) for event in events_of_metrics(4, named)]

    assert kinds(training__loss=1.0, training__global_grad_norm=2.0) == []
    assert kinds(evaluation__loss=2.25, evaluation__perplexity=9.4877358) == [
        "step 4/9 evaluation loss 2.25 perplexity 9.4877"
    ]
    assert kinds(training__loss=math.inf) == ["step 4/9 nonfinite what the loss"]
    assert kinds(training__global_grad_norm=math.nan) == ["step 4/9 skipped reason the gradients were not finite"]
    assert kinds(training__global_grad_norm=math.inf, training__loss_scale=65536.0) == [
        "step 4/9 skipped reason the gradients overflowed at a loss scale of 65536"
    ]


def test_what_is_normal_while_a_loss_scale_is_searched_for_is_no_warning() -> None:
    for scale, level in ((None, logging.WARNING), (8.0, logging.INFO)):
        metrics = {"training/global_grad_norm": math.nan, **({} if scale is None else {"training/loss_scale": scale})}
        assert [event.level for event in events_of_metrics(1, metrics)] == [level]


def test_rank_0_alone_tells_but_ranks_that_print_metrics_show_evaluations(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for rank, prints, expected in ((0, True, 2), (0, False, 1), (3, True, 1), (3, False, 0)):
        caplog.clear()
        log = EventLog(tmp_path / f"{rank}{prints}", rank=rank, prints_metrics=prints)
        log.tell(SAVED)
        log.write(41, {"evaluation/loss": 1.0})
        assert len(caplog.messages) == expected
        assert (tmp_path / f"{rank}{prints}").exists() == (rank == 0)


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (DataRefusedError("too much"), {"state": "failed", "reason": "rank 0: too much"}),
        (ValueError("no"), {"state": "failed", "reason": "rank 0: ValueError: no"}),
        (KeyboardInterrupt(), {"state": "pre-empted", "reason": "SIGINT"}),
        (SystemExit(0), None),
        (None, {"state": "finished", "reason": None}),
    ],
)
def test_a_log_ends_with_how_the_run_ended(
    error: BaseException | None, ended: dict[str, Any] | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run() -> None:
        with EventLog(tmp_path) as log:
            log.write(7, {"evaluation/loss": 1.0})
            if error is not None:
                raise error
            log.end(7, RunPhase.FINISHED)

    if error is None:
        run()
    else:
        with pytest.raises(type(error)):
            run()
    last = read(tmp_path)[-1]
    assert (last["step"], last["event"]) == (7, "evaluation" if ended is None else "ended")
    assert ended is None or ended.items() <= last.items()
    assert len(caplog.messages) == 1  # how a run ends is said elsewhere


def test_a_file_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    log = EventLog(tmp_path / "file")
    log.tell(SAVED)
    log.tell(SAVED)
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING", "INFO"]
    assert "events are being lost" in caplog.text


def test_a_line_that_a_full_disk_cuts_off_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path)

    class Full(io.FileIO):
        """Takes the first 40 bytes, as a disk that fills up does."""

        def write(self, data: Any) -> int:
            return super().write(data[:40])

    with monkeypatch.context() as full:
        full.setattr(Path, "open", lambda path, mode, buffering: Full(path, mode))
        log.tell(SAVED)
    log.tell(SAVED)
    assert [event["step"] for event in read(tmp_path)] == [40]
