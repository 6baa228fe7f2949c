"""MetricWriter: collect metrics on the device, and bring them to the host in one transfer when they are written."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor
from typing_extensions import Self

_log = logging.getLogger(__name__)


class MetricSink(Protocol):
    """A place that metrics are written to. An OSError loses metrics, which is reported; other errors end the run."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of one step; steps come in order."""

    def close(self) -> None:
        """Finish writing."""


@dataclass(frozen=True)
class _OnDevice:
    """Values of one dtype that were added together, still on their device."""

    step: int
    names: tuple[str, ...]
    values: Tensor


class MetricWriter:
    """Buffer that keeps the metrics of each step, device scalars included, until `flush` writes them to every sink.

    Without sinks, as on most ranks, it does nothing at all. A sink that cannot write is reported once and tried again
    at the next flush: a full disk costs metrics, not the run; `close` reports how many steps were lost. Leaving it as a
    context manager flushes and closes it.
    """

    def __init__(self, sinks: Sequence[MetricSink]) -> None:
        self._sinks = tuple(sinks)
        self._rows: dict[int, dict[str, float]] = {}
        self._on_device: list[_OnDevice] = []
        self._lost = [0 for _ in sinks]
        """Number of steps that each sink could not write."""

    def add(self, step: int, metrics: Mapping[str, float | Tensor]) -> None:
        """Add metrics to those already added for `step`. Tensors must have one element. Does not synchronise.

        The tensors' values are copied on the device (one kernel per dtype), so the tensors may change afterwards.
        """
        if not self._sinks:
            return
        row = self._rows.setdefault(step, {})
        tensors: defaultdict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = defaultdict(dict)
        for name, value in metrics.items():
            if isinstance(value, Tensor):
                row[name] = float("nan")  # holds the place in the row
                tensors[value.device, value.dtype][name] = value.detach().reshape(())
            else:
                row[name] = value
        for group in tensors.values():
            self._on_device.append(_OnDevice(step, tuple(group), torch.stack(list(group.values()))))

    def add_vector(self, step: int, names: Sequence[str], values: Tensor) -> None:
        """Add metrics of `step` from one vector [len(names)]. It is not copied, so it must not change any more."""
        if self._sinks:
            self._rows.setdefault(step, {}).update(dict.fromkeys(names, float("nan")))  # holds the places in the row
            self._on_device.append(_OnDevice(step, tuple(names), values))

    def flush(self) -> Mapping[int, Mapping[str, float]]:
        """Write everything that was added since the last flush, and return it by step. Waits for the device, once."""
        rows, self._rows = self._rows, {}
        waiting, self._on_device = self._on_device, []
        for group, values in zip(waiting, _to_host([group.values for group in waiting]), strict=True):
            rows[group.step].update(zip(group.names, values, strict=True))
        for index, sink in enumerate(self._sinks):
            steps = sorted(rows)
            try:
                while steps:
                    sink.write(steps[0], rows[steps[0]])
                    del steps[0]
            except OSError as error:
                if not self._lost[index]:
                    _log.warning("metrics are being lost: %s cannot write (%s)", type(sink).__name__, error)
                self._lost[index] += len(steps)
        return rows

    def close(self) -> None:
        """Write what is left and close the sinks."""
        self.flush()
        for sink, lost in zip(self._sinks, self._lost, strict=True):
            try:
                sink.close()
            except OSError as error:
                _log.warning("%s may have lost its last metrics (%s)", type(sink).__name__, error)
            if lost:
                _log.warning("%s did not write the metrics of %d steps", type(sink).__name__, lost)
        self._sinks = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _to_host(vectors: Sequence[Tensor]) -> list[list[float]]:
    """Return the values of 1-d tensors of any dtypes, with one transfer per device.

    Values pass through float64, which holds every float32 and every integer up to 2^53 exactly (on mps float32).
    """
    result: list[list[float]] = [[] for _ in vectors]
    by_device: defaultdict[torch.device, defaultdict[torch.dtype, list[int]]]
    by_device = defaultdict(lambda: defaultdict(list))
    for index, vector in enumerate(vectors):
        by_device[vector.device][vector.dtype].append(index)
    for device, by_dtype in by_device.items():
        exact = torch.float32 if device.type == "mps" else torch.float64
        order = [index for indices in by_dtype.values() for index in indices]
        joined = [torch.cat([vectors[index] for index in indices]).to(exact) for indices in by_dtype.values()]
        values = iter(torch.cat(joined).tolist())
        for index in order:
            result[index] = [next(values) for _ in range(len(vectors[index]))]
    return result
