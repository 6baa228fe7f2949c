"""Metrics stay on the device until they are flushed, and arrive exactly, once and in order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.logging.metrics import MetricWriter


class Memory:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append((step, dict(metrics)))

    def close(self) -> None:
        self.closed = True


class FullDisk(Memory):
    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        raise OSError(28, "No space left on device")


class Gone(Memory):
    def close(self) -> None:
        raise OSError(5, "Input/output error")


def test_rows_come_in_order_with_all_that_was_added_to_a_step() -> None:
    memory = Memory()
    writer = MetricWriter([memory])
    writer.add(2, {"b": 2.0})
    writer.add(1, {"a": 1, "t": torch.tensor(0.25)})
    writer.add(2, {"evaluation": torch.tensor(7)})
    writer.flush()
    assert memory.rows == [(1, {"a": 1, "t": 0.25}), (2, {"b": 2.0, "evaluation": 7.0})]
    assert list(memory.rows[0][1]) == ["a", "t"]


def test_nothing_is_written_twice() -> None:
    memory = Memory()
    writer = MetricWriter([memory])
    writer.add(1, {"a": 1.0})
    writer.flush()
    writer.flush()
    writer.close()
    assert len(memory.rows) == 1
    assert memory.closed


VALUES = {
    torch.float64: st.floats(allow_nan=False),
    torch.float32: st.floats(width=32, allow_nan=False),
    torch.float16: st.floats(width=16, allow_nan=False),
    torch.int64: st.integers(-(2**53), 2**53),
    torch.bool: st.booleans(),
}


@given(st.data())
def test_every_value_survives_exactly_whatever_dtypes_are_mixed(data: st.DataObject) -> None:
    memory = Memory()
    writer = MetricWriter([memory])
    expected: dict[int, dict[str, Any]] = {}
    for step in range(1, data.draw(st.integers(1, 4)) + 1):
        dtypes = data.draw(st.lists(st.sampled_from(list(VALUES)), max_size=5))
        row = {f"m{index}": (dtype, data.draw(VALUES[dtype])) for index, dtype in enumerate(dtypes)}
        writer.add(step, {name: torch.tensor(value, dtype=dtype) for name, (dtype, value) in row.items()})
        expected[step] = {name: float(value) for name, (_, value) in row.items()}
    writer.flush()
    assert dict(memory.rows) == expected


@contextmanager
def transfers_counted() -> Iterator[list[str]]:
    """Record every way by which a tensor's value reaches the host."""
    calls: list[str] = []

    def counted(name: str) -> Any:
        original = getattr(torch.Tensor, name)

        def call(self: torch.Tensor, *arguments: Any) -> Any:
            calls.append(name)
            return original(self, *arguments)

        return mock.patch.object(torch.Tensor, name, call)

    with ExitStack() as stack:
        for name in ("tolist", "item", "cpu", "numpy", "__float__", "__bool__", "__int__"):
            stack.enter_context(counted(name))
        yield calls


def test_adding_waits_for_no_device_and_flushing_does_once() -> None:
    writer = MetricWriter([Memory()])
    with transfers_counted() as transfers:
        for step in range(20):
            writer.add(
                step, {"a": torch.tensor(1.0), "b": torch.tensor(2), "c": torch.tensor(3.0, dtype=torch.float64)}
            )
        assert transfers == []
        writer.flush()
        assert transfers == ["tolist"]


def test_a_tensor_may_change_after_it_was_added() -> None:
    memory = Memory()
    writer = MetricWriter([memory])
    buffer = torch.tensor([1.0], requires_grad=True)
    for step in (1, 2):
        writer.add(step, {"a": buffer})
        with torch.no_grad():
            buffer.mul_(10)
    writer.flush()
    assert memory.rows == [(1, {"a": 1.0}), (2, {"a": 10.0})]


def test_numbers_that_are_not_finite_pass_through() -> None:
    memory = Memory()
    with MetricWriter([memory]) as writer:
        writer.add(1, {"a": torch.tensor(float("nan")), "b": torch.tensor(float("inf"))})
    assert math.isnan(memory.rows[0][1]["a"])
    assert memory.rows[0][1]["b"] == math.inf


def test_a_tensor_of_several_elements_is_refused() -> None:
    with pytest.raises(RuntimeError):
        MetricWriter([Memory()]).add(1, {"a": torch.ones(2)})


def test_a_sink_that_cannot_be_closed_ends_no_run_and_leaves_the_others_to_be_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gone, memory = Gone(), Memory()
    with MetricWriter([gone, memory]) as writer:
        writer.add(1, {"a": 1.0})
    assert memory.closed
    assert "Gone may have lost its last metrics" in caplog.text


def test_without_sinks_nothing_is_kept() -> None:
    writer = MetricWriter([])
    with mock.patch.object(torch, "stack") as stack:
        writer.add(1, {"a": torch.tensor(1.0)})
        writer.flush()
    stack.assert_not_called()


def test_a_sink_that_cannot_write_is_reported_once_and_does_not_stop_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    memory = Memory()
    writer = MetricWriter([FullDisk(), memory])
    for step in (1, 2, 3):
        writer.add(step, {"a": 1.0})
        writer.flush()
    assert len(memory.rows) == 3
    assert len(caplog.records) == 1
    assert "FullDisk cannot write" in caplog.text
    writer.close()
    assert caplog.messages[1:] == ["FullDisk did not write the metrics of 3 steps"]
