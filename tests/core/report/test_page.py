"""The page as a whole: complete, self-contained, and only text of what a run has written."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.core import BaseConfig, TopologyConfig, read_run, report_page
from scaling.core.logging.run_state import RunPhase, RunState
from scaling.core.report.page import names_of
from tests.core.report.folders import FOUR_RANKS, RESOLVED, profile, steps, write_lines, write_run
from tests.core.report.test_markup import ANY_TEXT, Elements

KILLED = {
    "attempt": 1,
    "started": "2030-01-01T00:00:00+00:00",
    "ended": "2030-01-01T00:01:30+00:00",
    "status": 137,
    "reason": "rank 1: the process was ended by SIGKILL",
    "host": "node-02",
}


class Config(BaseConfig):
    """Sections of a configuration."""

    topology: TopologyConfig = TopologyConfig()
    """Where."""


def page_of(*folders: Path) -> str:
    return report_page([read_run(folder) for folder in folders], config_class=Config)


def sections(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


def full_run(folder: Path, **changes: Any) -> Path:
    """Write a run with everything that a page can show."""
    write_run(
        folder,
        **{
            "again": steps(51, 60, offset=0.5),
            "events": [{"time": "2030-01-01T00:00:00.000+00:00", "step": 50, "event": "started", "resumed_from": "x"}],
            "attempts": [KILLED],
            "state": RunState(state=RunPhase.FAILED, step=120, reason="rank 1: out of memory", exit_status=1),
            **changes,
        },
    )
    (folder / "rank_1.log").write_text("the last line\n")
    (folder / "profile.json").write_text(json.dumps(profile([(0, 0, "forward", 0, 10), (1, 0, "forward", 0, 1)])))
    return folder


def test_a_page_has_what_is_known_and_nothing_else(tmp_path: Path) -> None:
    everything = ["Summary", "End", "Curves", "Attempts", "Events", "Layout", "Timeline", "Versions and hardware"]
    assert sections(page_of(full_run(tmp_path / "full"))) == [*everything, "Configuration"]
    write_lines(tmp_path / "bare" / "metrics.jsonl", steps(1, 3))
    assert sections(page_of(tmp_path / "bare")) == ["Summary", "Curves", "Notes on the folder"]


def test_a_page_loads_nothing_and_lets_nothing_be_loaded(tmp_path: Path) -> None:
    page = page_of(full_run(tmp_path / "a"), full_run(tmp_path / "b"))
    seen = Elements(page)
    assert not {"link", "img", "iframe", "object", "embed", "base", "form", "image", "use"} & set(seen.names)
    links = [value for name, value in seen.attributes if name in ("href", "src", "xlink:href", "action", "data")]
    assert all(value is not None and value.startswith("#") for value in links)
    assert all(f'id="{value.removeprefix("#")}"' in page for value in links if value)
    assert not re.findall(r"url\(|@import|\bfetch\b|XMLHttpRequest|\beval\b|innerHTML|WebSocket", page)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', page)
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}';" in policy
    assert re.findall(r"https?://[^\"' <]*", page) == ["http://www.w3.org/2000/svg"] * page.count("xmlns=")


def test_whatever_a_run_has_written_is_text(tmp_path: Path) -> None:
    expected = Elements(page_of(_with_text(tmp_path / "run", "harmless")))

    @settings(max_examples=15, deadline=None)
    @given(text=ANY_TEXT)
    def check(text: str) -> None:
        page = page_of(_with_text(Path(tempfile.mkdtemp(dir=tmp_path)) / "run", text))
        page.encode()
        seen = Elements(page)
        assert seen.names == expected.names
        assert [name for name, _ in seen.attributes] == [name for name, _ in expected.attributes]

    check()


def _with_text(folder: Path, text: str) -> Path:
    """Write a run that has `text` everywhere."""
    plain = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "", text).replace('"', "'").replace("\\", "")
    config = f'{RESOLVED}note: "t{plain}"\n'
    full_run(
        folder,
        metrics=[*steps(1, 20), *({"step": n, f"statistics/{text}x/mean": 1.0 + n} for n in range(1, 4))],
        state=RunState(state=RunPhase.FAILED, step=3, reason=f"rank 1: {text}", exit_status=1),
        events=[{"time": text, "step": text, "event": f"x{text}", f"a{text}": f"y{text}", "reason": {"deep": text}}],
        attempts=[{**KILLED, "reason": f"z{text}", "started": text}],
        about={"versions": {f"v{text}": f"w{text}"}, "layout": FOUR_RANKS, "git": {"branch": f"u{text}"}},
        config=config,
    )
    line = text.encode("utf-8", "replace").decode().replace("\r", "").replace("\n", "")
    (folder / "rank_1.log").write_text(f"last {line}\n", errors="replace")
    trace = profile([(0, 0, "forward", 0, 10)])
    trace["traceEvents"][0]["args"]["name"] = f"rank {text}"
    trace["traceEvents"][1] |= {"name": text, "cat": "forward"}
    (folder / "profile.json").write_text(json.dumps(trace))
    return folder


SCALARS: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.sampled_from(["", "rank 1", "x"])
)
KEYS = st.sampled_from(
    [*("step", "event", "time", "resumed_from", "state", "reason", "exit_status", "updated", "attempts", "attempt"),
     *("started", "ended", "status", "host", "layout", "pipe", "versions", "hardware", "gpus", "memory_bytes", "git"),
     *("traceEvents", "ph", "pid", "tid", "ts", "dur", "name", "cat", "args", "otherData", "clock_uncertainty_us")]
)  # fmt: skip
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4))
SPAN = st.fixed_dictionaries({}, optional={key: SCALARS for key in ("name", "cat", "tid", "args")}).map(
    lambda event: {"ph": "X", "pid": 0, "ts": 1, "dur": 2, **event}
)


def test_no_values_in_the_files_of_a_run_are_an_unexpected_error(tmp_path: Path) -> None:
    @settings(max_examples=60, deadline=None)
    @given(about=JSON, state=JSON, event=JSON, attempt=JSON, trace=JSON, span=SPAN, value=st.floats() | st.integers())
    def check(**values: Any) -> None:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        metrics = [{"step": 1, "training/loss": 1.0}, {"step": 2, "training/loss": values["value"]}]
        metrics[1] |= {"training/step_duration": values["value"], "training/mfu": values["value"]}
        write_lines(folder / "metrics.jsonl", metrics)
        about, state, event, attempt = values["about"], values["state"], values["event"], values["attempt"]
        about = {**about, "attempts": [attempt]} if isinstance(about, dict) else about
        (folder / "run.json").write_text(json.dumps(about))
        state = {"state": "failed", **state} if isinstance(state, dict) else {"state": "running", "step": state}
        (folder / "run_state.json").write_text(json.dumps({"updated": "", **state}))
        started = {"event": "started", "resumed_from": "x", **(event if isinstance(event, dict) else {"step": event})}
        (folder / "events.jsonl").write_text(f"{json.dumps(event)}\n{json.dumps(started)}\n")
        trace = (
            values["trace"] if isinstance(values["trace"], dict) else {"traceEvents": [values["trace"], values["span"]]}
        )
        (folder / "profile.json").write_text(json.dumps(trace))
        assert page_of(folder).endswith("</html>\n")

    check()


def test_a_restart_is_marked_and_its_steps_are_told_apart(tmp_path: Path) -> None:
    page = page_of(full_run(tmp_path / "run"))
    charts = page.count('<figure class="chart"')
    assert charts == page.count('class="run c0 restart"')
    assert "run: went on from step 50" in page
    assert 'class="run c0 again"' in page
    assert "1 min 30 s" in page
    assert "rank 1: the process was ended by SIGKILL on node-02" in page


def test_a_bad_end_has_its_reason_and_its_last_lines(tmp_path: Path) -> None:
    page = page_of(full_run(tmp_path / "run"))
    assert "failed after step 120, status 1" in page
    assert "rank 1: out of memory" in page
    assert "The last lines of rank_1.log:" in page
    assert '<pre tabindex="0">the last line</pre>' in page


def test_a_run_that_goes_on_says_up_to_where(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", state=RunState(state=RunPhase.RUNNING, step=110)))
    assert "running, as of step 120" in page
    assert "End" not in sections(page)


def test_a_run_without_a_step_has_a_page(tmp_path: Path) -> None:
    failed = RunState(state=RunPhase.FAILED, reason="rank 0: no data", exit_status=2)
    page = page_of(write_run(tmp_path / "run", metrics=[], state=failed))
    assert "No step was finished: there are no curves." in page


def test_several_runs_share_their_figures_and_differ_by_colour_and_name(tmp_path: Path) -> None:
    config = RESOLVED.replace("pipe_parallel_size: 2", "pipe_parallel_size: 4").replace("micro_batch_size: 2, ", "")
    config = config.replace("}", ", compile: never}")
    other = write_run(tmp_path / "b", metrics=steps(1, 60), config=config)
    page = page_of(write_run(tmp_path / "a"), other)
    assert page.count("<h3>Loss</h3>") == 1
    assert {'data-run="0"', 'data-run="1"'} <= set(re.findall(r'data-run="\d"', page))
    assert page.count("data-toggle=") == 2
    body = page[page.index("What differs between the runs") :]
    table = body[: body.index("</table>")]
    assert re.findall(r'<th scope="row">(.*?)</th>', table) == [
        "topology.pipe_parallel_size",
        "topology.micro_batch_size",
        "topology.compile",
    ]
    assert "not there" in table


def test_many_steps_make_a_small_page_in_which_a_spike_of_one_step_is_seen(tmp_path: Path) -> None:
    generator = random.Random(1)
    lines = [{"step": n, "training/loss": 2 + generator.random()} for n in range(1, 3001)]
    lines[1234]["training/loss"] = 40.0
    lines += [{"step": n, **{f"statistics/{k}/rms": 1.0 * n for k in range(80)}} for n in range(1, 200)]
    write_lines(tmp_path / "run" / "metrics.jsonl", lines)
    page = page_of(tmp_path / "run")
    assert len(page.encode()) < 2 * 2**20
    assert "highest 40 at step 1235" in page
    assert "Not drawn, for there are too many: statistics/" in page
    heights = [int(y) for y in re.findall(r"(\d+)(?= \d+ |\")", re.findall(r'd="([^"]*)" class="run c0 raw"', page)[0])]
    assert min(heights) < 500  # near the top of 10,000


def test_a_configuration_of_another_version_is_shown_as_it_is(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", config="topology: {former_name: 3}\n")
    page = page_of(folder)
    assert "This version cannot read config.yml, so there is no comparison with the defaults" in page
    assert "former_name" in page
    assert "defaults" not in report_page([read_run(folder)])


def test_only_what_differs_from_the_defaults_is_listed(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run"))
    body = page[page.index("What differs from the defaults") :]
    rows = re.findall(r'<th scope="row">(.*?)</th>', body[: body.index("</table>")])
    assert "topology.pipe_parallel_size" in rows
    assert "topology.micro_batch_size" not in rows


@pytest.mark.parametrize("layout", [None, {"pipe": 0}, {"pipe": "2"}, {"pipe": 2, "data": 2, "model": 1}])
def test_a_layout_that_is_unknown_or_of_an_earlier_version_is_no_error(tmp_path: Path, layout: object) -> None:
    page = page_of(write_run(tmp_path / "run", about={"layout": layout}))
    drawn = isinstance(layout, dict) and "model" in layout
    assert ("Layout" in sections(page)) is drawn


def test_a_pipeline_is_drawn_as_it_was_planned(tmp_path: Path) -> None:
    assert "A step as planned (1f1b)<" in page_of(write_run(tmp_path / "run"))
    long = RESOLVED.replace("steps: 4", "steps: 400")
    assert "A step as planned (1f1b), cut from 400 micro-batches<" in page_of(write_run(tmp_path / "long", config=long))
    other = {"layout": {**FOUR_RANKS, "pipe": 1}}
    assert "as planned" not in page_of(write_run(tmp_path / "other", about=other))


def test_names_are_the_shortest_ends_of_paths_that_differ() -> None:
    assert names_of([Path("/x/a/logs"), Path("/x/b/logs"), Path("/x/c")]) == ["a/logs", "b/logs", "c"]
    assert names_of([Path("/x/a")]) == ["a"]
    assert names_of([Path("/x/a"), Path("/x/a")]) == ["1: a", "2: a"]
