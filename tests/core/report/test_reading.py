"""Folders of runs that are whole, unfinished, damaged, of an earlier version, or of no run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaling.core import ConfigError, read_run
from scaling.core.logging.run_state import RunPhase, RunState
from tests.core.report.folders import RESOLVED, steps, write_lines, write_run


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    assert run.last_step == 120
    assert run.series["training/loss"].steps.tolist() == list(range(1, 121))
    assert run.series["evaluation/loss"].values[0] == 5.49
    assert run.config is not None
    assert run.config["topology"]["pipe_parallel_size"] == 2
    assert run.config_text == RESOLVED
    assert run.state is not None
    assert run.state.state is RunPhase.FINISHED
    assert not run.again
    assert not run.notes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist; give the folder that logger.log_dir names"),
        (lambda path: path.mkdir(), "is empty: none of metrics.jsonl, run.json, run_state.json, config.yml, "),
        (lambda path: path.write_text("{}"), "is a file; give the folder that it is in"),
        (lambda path: write_lines(path / "notes.jsonl", [{}]), "holds nothing of a run"),
        (lambda path: write_run(path / "logs"), "did you mean "),
    ],
)
def test_what_is_no_folder_of_a_run_is_refused_with_its_name(tmp_path: Path, make: object, message: str) -> None:
    path = tmp_path / "given"
    make(path)  # type: ignore[operator]  # a function of a table
    with pytest.raises(ConfigError) as refused:
        read_run(path)
    assert str(path) in str(refused.value)
    assert message in str(refused.value)


def test_a_folder_of_checkpoints_is_told_that_the_run_is_beside_it(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "run" / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match=r"checkpoints is empty.*did you mean .*run\?"):
        read_run(tmp_path / "run" / "checkpoints")


def test_a_line_that_is_cut_off_costs_that_line(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", state=RunState(state=RunPhase.RUNNING, step=100))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 121, "training/lo')
    run = read_run(folder)
    assert run.last_step == 120
    assert len(run.series["training/loss"]) == 120
    assert run.notes == ["the last line of metrics.jsonl is cut off: the run was writing it, or was killed meanwhile"]


def test_lines_that_cannot_be_read_are_counted_and_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", metrics=[])
    lines = [
        '{"step": 1, "training/loss": 2.0}',
        "\x00\x00",
        "[]",
        '{"step": 2, "training/loss": 1.0}',
        '{"step": "3"}',
    ]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"training/loss": 1.0}', "[" * 100_000, "{", ""]))
    run = read_run(folder)
    assert run.series["training/loss"].values.tolist() == [2.0, 1.0]
    assert run.notes == [
        "metrics.jsonl: line 2, 3, 7 and 1 more cannot be read, and is left out",
        "metrics.jsonl: 2 lines name no step, and are left out",
    ]


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=200), name=st.sampled_from(["metrics.jsonl", "run.json", "run_state.json"]))
def test_no_content_of_a_file_is_an_unexpected_error(tmp_path: Path, content: bytes, name: str) -> None:
    folder = tmp_path / "run"
    if not folder.exists():
        write_run(folder, metrics=steps(1, 2))
    before = (folder / name).read_bytes()
    (folder / name).write_bytes(content)
    (folder / "config.yml").write_bytes(content)
    read_run(folder)
    (folder / name).write_bytes(before)


def test_numbers_that_are_not_finite_or_too_large_are_kept_as_such(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", metrics=[])
    lines = [
        '{"step": 1, "a": NaN}',
        '{"step": 2, "a": -Infinity}',
        f'{{"step": 3, "a": 1{"0" * 400}}}',
        '{"step": 4, "a": "x"}',
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert str(read_run(folder).series["a"].values.tolist()) == "[nan, -inf, inf]"


def test_steps_that_came_again_are_apart(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", again=steps(51, 60, offset=1.0)))
    assert run.again["training/loss"].steps.tolist() == list(range(51, 61))
    assert run.series["training/loss"].steps.tolist() == list(range(1, 121))


def test_steps_that_are_twice_in_one_file_count_as_they_were_written_last(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", metrics=[*steps(1, 60), *steps(51, 80, offset=1.0)]))
    assert run.series["training/loss"].steps.tolist() == list(range(1, 81))
    assert run.again["training/loss"].steps.tolist() == list(range(51, 61))
    assert run.series["training/loss"].values[50] == run.again["training/loss"].values[0] + 1.0
    assert any("some steps twice" in note for note in run.notes)


def test_a_folder_with_little_is_read_and_what_is_missing_noted(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_lines(folder / "metrics.jsonl", steps(1, 5))
    run = read_run(folder)
    assert run.state is None
    assert run.config is None
    assert [note.partition(" is missing")[0] for note in run.notes] == ["config.yml", "run.json", "run_state.json"]


def test_a_run_that_never_finished_a_step_is_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", state=RunState(state=RunPhase.FAILED, reason="rank 0: no", exit_status=2))
    (folder / "metrics.jsonl").unlink()
    run = read_run(folder)
    assert not run.series
    assert run.notes == ["metrics.jsonl is missing: the run has not finished a step, or the file was not copied"]


def test_restarts_come_from_the_events_and_else_from_the_log(tmp_path: Path) -> None:
    told = {"event": "started", "step": 40, "resumed_from": "checkpoints/global_step40"}
    begun = {"event": "started", "step": 0, "resumed_from": None}
    folder = write_run(tmp_path / "run", events=[begun, told])
    (folder / "rank_0.log").write_text("[x] resumed from checkpoints/global_step50 at step 50\nresumed from there\n")
    assert read_run(folder).restarts == [40]
    (folder / "events.jsonl").unlink()
    assert read_run(folder).restarts == [50]


def test_the_last_words_are_those_of_the_rank_at_fault(tmp_path: Path) -> None:
    failed = RunState(state=RunPhase.FAILED, step=7, reason="rank 3: ValueError: no", exit_status=1)
    folder = write_run(tmp_path / "run", state=failed)
    (folder / "rank_0.log").write_text("a consequence\n")
    (folder / "rank_3.log").write_text("".join(f"line {n}\n" for n in range(5000)) + "ValueError: no\n")
    last = read_run(folder).last_words
    assert last is not None
    assert last.file == "rank_3.log"
    assert last.lines[-2:] == ["line 4999", "ValueError: no"]
    assert len(last.lines) == 25
    (folder / "rank_3.log").write_text("")
    last = read_run(folder).last_words
    assert last is not None
    assert (last.file, last.lines) == ("rank_0.log", ["a consequence"])


def test_the_profile_is_found_also_where_the_folder_has_moved(tmp_path: Path) -> None:
    config = f"profiler:\n  profiler_output: {tmp_path}/gone/timeline.json\n"
    folder = write_run(tmp_path / "run", config=config)
    assert read_run(folder).profile is None
    (folder / "timeline.json").write_text(json.dumps({"traceEvents": []}))
    assert read_run(folder).profile == {"traceEvents": []}
    (folder / "timeline.json").write_text('{"traceEv')
    run = read_run(folder)
    assert run.profile is None
    assert any("timeline.json cannot be read" in note for note in run.notes)
