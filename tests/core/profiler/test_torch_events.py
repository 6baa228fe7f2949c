"""Events of torch.profiler, moved to the common clock and out of each other's way."""

from __future__ import annotations

import time

import pytest
import torch

from scaling.core.profiler.torch_events import TorchProfiler, adapted

TRACE = {
    "baseTimeNanoseconds": 1_000_000_000_000,
    "traceEvents": [
        {"ph": "M", "name": "process_name", "pid": 77, "tid": 0, "args": {"name": "python"}},
        {"ph": "M", "name": "thread_name", "pid": 77, "tid": 7, "args": {"name": "thread 7 (python)"}},
        {"ph": "X", "name": "aten::mm", "cat": "cpu_op", "pid": 77, "tid": 7, "ts": 5.0, "dur": 10.0, "args": {"a": 1}},
        {"ph": "X", "name": "gemm", "cat": "kernel", "pid": 0, "tid": 7, "ts": 9.0, "dur": 2.0},
        {"ph": "s", "id": 3, "name": "ac2g", "cat": "ac2g", "pid": 77, "tid": 7, "ts": 5.0},
        {"ph": "f", "id": 3, "name": "ac2g", "cat": "ac2g", "pid": 0, "tid": 7, "ts": 9.0, "bp": "e"},
        {"ph": "X", "name": "no time", "pid": 77, "tid": 7},
    ],
}


def test_times_are_added_to_the_base_and_processes_become_one_of_the_rank() -> None:
    events = adapted(TRACE, rank=2, to_wall=lambda seconds: seconds + 0.5)
    product, kernel = (event for event in events if event["ph"] == "X")
    assert (product["pid"], product["ts"], product["dur"]) == (1002, pytest.approx(1000.5e6 + 5), pytest.approx(10.0))
    assert product["args"] == {"a": 1}
    assert kernel["pid"] == 1002
    assert kernel["tid"] != product["tid"]  # a stream and a thread with one number
    assert {event["id"] for event in events if "id" in event} == {"2/3"}
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert names == {product["tid"]: "thread 7 (python)", kernel["tid"]: "thread 7"}
    assert [event["args"]["name"] for event in events if event["name"] == "process_name"] == ["torch.profiler, rank 2"]


def test_what_torch_writes_is_on_the_wall_clock() -> None:
    profiler = TorchProfiler(torch.device("cpu"))
    profiler.start()
    before = time.time()
    torch.ones(8).exp()
    after = time.time()
    profiler.stop()
    profiler.stop()
    events = adapted(profiler.trace(), rank=0, to_wall=lambda seconds: seconds)
    (found,) = (event for event in events if event["name"] == "aten::exp")
    assert before - 1e-3 < found["ts"] / 1e6 < after + 1e-3
