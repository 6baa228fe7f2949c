"""A window in which everything is timed, on all ranks together, and the resulting file."""

from __future__ import annotations

import json
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace
from typing import final

from scaling.core.pipeline.actions import Action
from scaling.core.pipeline.draw import category, label
from scaling.core.pipeline.engine import untimed
from scaling.core.pipeline.module import ParallelModule
from scaling.core.profiler.clock import ClockMap, HostClock, between_ranks
from scaling.core.profiler.clock_exchange import hosts_of, measure_offset
from scaling.core.profiler.collectives import CollectiveObserver
from scaling.core.profiler.gathering import gather_bytes
from scaling.core.profiler.profiler import Profiler, Span
from scaling.core.profiler.torch_events import TorchProfiler, adapted
from scaling.core.profiler.trace import Event, arrow, measured_rows, simulated_rows, span_events
from scaling.core.topology.layout import Axis, Layout
from scaling.core.topology.topology import Topology
from scaling.core.trainer.expected import expected_events
from scaling.core.training.learner import Learner


@final
class Recording:
    """An open window. Creating and finishing one is collective: all ranks."""

    def __init__(self, topology: Topology, learner: Learner, clock: HostClock, *, with_torch: bool) -> None:
        self._topology, self._learner, self._clock = topology, learner, clock
        self.steps = 0
        """Complete steps so far."""
        self.stretch = ExitStack()
        """The span of an evaluation or a save that has begun."""
        self._torch = TorchProfiler(topology.device) if with_torch else None
        if self._torch is not None:
            self._torch.start()  # takes long the first time: before the clocks are compared
        self._hosts = hosts_of(topology, clock)
        self._begin = measure_offset(topology, clock, self._hosts)
        self._wall = time.time() - clock.now()
        self.profiler = Profiler(topology.device, now=clock.now)
        self._collectives = CollectiveObserver(self.profiler, topology)
        self._collectives.open()
        engine = learner.module.engine
        engine.timer = self._timed
        engine.data_timer = lambda: self.profiler.record("data", "data")
        learner.optimizer_timer = lambda: self.profiler.record("optimizer", "optimizer")

    def _timed(self, action: Action) -> AbstractContextManager[None]:
        engine = self._learner.module.engine
        return self.profiler.record(label(action, engine.stage_map), category(action), **asdict(action))

    def stop(self) -> None:
        """Stop recording, and restore everything as it was. With torch.profiler on a GPU this waits for the device."""
        self.stretch.close()
        if self._torch is not None:
            self._torch.stop()
        self._collectives.close()
        engine = self._learner.module.engine
        engine.timer = engine.data_timer = untimed
        self._learner.optimizer_timer = untimed

    def finish(self) -> bytes | None:
        """Return the file with the records of all ranks on rank 0, None on the others.

        On a GPU this waits for the device. All records are sent to rank 0, compressed.
        """
        self.stop()
        topology, layout = self._topology, self._topology.layout
        seen_by_torch = None if self._torch is None else self._torch.trace()
        spans = self.profiler.spans()
        to_clock = ClockMap(self._begin, measure_offset(topology, self._clock, self._hosts))
        wall = topology.broadcast("wall clock", self._wall)

        def to_wall(seconds: float) -> float:
            """Return the wall clock of rank 0 at a time of this rank's clock."""
            return to_clock(seconds) + wall

        column = layout.rank_along(Axis.PIPE, topology.rank, 0)
        own = span_events(
            numbered(spans, column=column), rank=topology.rank, world_size=layout.world_size, to_wall=to_wall
        )
        own += arrows(own)
        of_torch = []
        if seen_by_torch is not None:
            of_torch = adapted(seen_by_torch, rank=topology.rank, to_wall=lambda at: to_wall(at - self._wall))
        contents = [zlib.compress(json.dumps(events).encode(), level=1) for events in (own, of_torch)]
        measured, further = (gather_bytes(topology, content) for content in contents)
        clock = RankClock(
            self._hosts[topology.rank], to_clock.end.value, to_clock.uncertainty, self.profiler.uncertainty
        )
        clocks = topology.gather("clocks", asdict(clock))
        if measured is None or further is None or clocks is None:
            return None
        everything = [event for content in measured for event in json.loads(zlib.decompress(content))]
        return trace_file(
            everything,
            [zlib.decompress(content) for content in further],
            [RankClock(**fields) for fields in clocks],
            layout=layout,
            module=self._learner.module,
        )


@final
@dataclass(frozen=True)
class RankClock:
    """What is known of one rank's clock at the end of a window, in seconds."""

    host: str
    offset: float
    """The number that is added to its time to get that of rank 0."""
    uncertainty: float
    """How far `offset` may be off."""
    device_uncertainty: float
    """How far times of its GPU may be off relative to those of its host; 0 on a CPU."""


def numbered(spans: Sequence[Span], *, column: int) -> list[Span]:
    """Return the spans; those of sends and receives name their message, by the same name on both ranks.

    Messages of the same name (in each step, in each batch of an evaluation) come in the same order on both ranks, and
    are numbered. `column` identifies the ranks along one pipe axis, since messages of other columns have the same
    names.
    """
    counts: Counter[str] = Counter()
    found = []
    for span in spans:
        if span.category in ("send", "recv"):
            at = span.arguments
            name = f"{column}: {at['payload']} {at['micro_batch']}:{at['source']}>{at['target']}"
            counts[name] += 1
            span = replace(span, arguments={**at, "message": f"{name} #{counts[name]}"})
        found.append(span)
    return found


def arrows(events: Sequence[Event]) -> list[Event]:
    """Return the ends of arrows at the sends and receives of a rank."""
    return [
        arrow(
            event["args"]["payload"],
            event["args"]["message"],
            sends=event["cat"] == "send",
            row=event["tid"],
            at=event["ts"] if event["cat"] == "send" else event["ts"] + event["dur"],
        )
        for event in events
        if event["cat"] in ("send", "recv")
    ]


def trace_file(
    measured: Sequence[Event],
    further: Sequence[bytes],
    clocks: Sequence[RankClock],
    *,
    layout: Layout,
    module: ParallelModule,
) -> bytes:
    """Return a trace of what all ranks measured, the simulated schedule, and `further` lists of events as JSON."""
    simulated = expected_events(measured, module.schedule, ranks=layout.pipe, micro_batches=module.micro_batches)
    named = [*measured_rows(measured, layout), *(simulated_rows(layout.pipe) if simulated else ())]
    lists = [json.dumps([*named, *measured, *simulated]).encode(), *further]
    events = b",".join(text[1:-1] for text in lists if len(text) > len(b"[]"))
    apart = between_ranks([clock.uncertainty for clock in clocks], [clock.host for clock in clocks])
    devices = sorted(clock.device_uncertainty for clock in clocks)[-2:]
    facts = {
        "clock_uncertainty_us": (apart + sum(devices)) * 1e6,
        "clocks": [
            {"rank": rank, "offset_us": clock.offset * 1e6, "uncertainty_us": clock.uncertainty * 1e6}
            for rank, clock in enumerate(clocks)
        ],
    }
    return b'{"traceEvents":[%s],"displayTimeUnit":"ms","otherData":%s}' % (events, json.dumps(facts).encode())
