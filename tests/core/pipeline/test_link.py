"""Links between stages: any tree of tensors arrives as it was sent, described once."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scaling.core.collectives import ops, tree
from scaling.core.collectives.ops import Group
from scaling.core.errors import ScheduleError
from scaling.core.pipeline.link import ActivationReceiver, ActivationSender, Outbox, describe, leaves_of, rebuild
from scaling.core.topology.layout import Axis
from tests.distributed import run_distributed
from tests.reference.worlds import connected, random

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Inner:
    values: Any
    flag: Any = None


@dataclass
class Cached:
    values: Any
    cache: Any = field(default=None, init=False)


class Point(NamedTuple):
    x: Any
    y: Any


LEAVES = (
    st.tuples(st.lists(st.integers(0, 3), max_size=3), st.sampled_from([torch.float32, torch.int64, torch.bool])).map(
        lambda drawn: torch.zeros(drawn[0], dtype=drawn[1])
    )
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=4)
)


def containers(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(children, max_size=3)
    named = st.dictionaries(st.sampled_from(["a", "b", "dict", "tensor", "constant"]), children, max_size=3)
    return (
        several
        | several.map(tuple)
        | named
        | st.builds(Inner, children, children)
        | st.builds(Point, children, children)
    )


def alike(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Inner):
        return isinstance(b, Inner) and alike(a.values, b.values) and alike(a.flag, b.flag)
    if isinstance(a, dict):
        return isinstance(b, dict) and set(a) == set(b) and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(alike(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and bool(a == b)


@given(st.recursive(LEAVES, containers, max_leaves=10))
def test_a_tree_is_rebuilt_from_its_description_and_its_tensors(value: Any) -> None:
    described = json.loads(json.dumps(describe(value)))
    assert alike(rebuild(described, iter([tensor for _, tensor in tree.flatten(value)])), value)


def test_a_field_that_a_class_makes_itself_travels_too() -> None:
    sent = Cached(torch.zeros(2))
    sent.cache = (torch.ones(3, dtype=torch.int64), 4)
    described = json.loads(json.dumps(describe(sent)))
    arrived = rebuild(described, iter([tensor for _, tensor in tree.flatten(sent)]))
    assert isinstance(arrived, Cached)
    assert alike(arrived.values, sent.values)
    assert alike(arrived.cache, sent.cache)


@pytest.mark.parametrize(
    "value",
    [{1, 2}, object(), {1: torch.zeros(1)}, {"a": {("b",): torch.zeros(1)}}],
    ids=["set", "object", "number as key", "tuple as key"],
)
def test_what_would_not_arrive_as_it_was_is_refused(value: Any) -> None:
    with pytest.raises(ScheduleError, match="travel"):
        describe(value)


def test_leaves_say_shape_type_and_need_of_a_gradient() -> None:
    value = {"a": torch.zeros(2, 3, requires_grad=True), "b": Inner((torch.zeros(4, dtype=torch.int32), "constant"))}
    leaves = list(leaves_of(describe(value)))
    assert [leaf.path for leaf in leaves] == [path for path, _ in tree.flatten(value)]
    assert [(leaf.path, leaf.shape, leaf.dtype, leaf.requires_grad) for leaf in leaves] == [
        ("['a']", (2, 3), torch.float32, True),
        ("['b'].values[0]", (4,), torch.int32, False),
    ]


def payloads() -> list[Any]:
    x = random(2, 3, seed=1)
    needing = x.clone().requires_grad_()
    return [
        needing,
        (needing, torch.arange(4)),
        [x.to(torch.bfloat16), x.half(), x.float(), torch.tensor(True)],
        {"b": needing, "a": Inner((x, None, "text", 3), flag=2.5)},
        Inner(needing.t(), x.expand(4, 2, 3)),  # neither contiguous
        {"empty": torch.zeros(0, 3), "scalar": torch.tensor(7.0, dtype=torch.float64)},
        {"no": 1, "tensors": (None, "at all")},
    ]


def repeated(payload: Any, number: int) -> Any:
    """Return the payload with other values, for the message after the first."""
    return tree.map_tensors(lambda t: (t.detach() + number).to(t.dtype).requires_grad_(t.requires_grad), payload)


def send_payloads(rank: int, world_size: int) -> None:
    with connected(pipe=2) as topology:
        group = topology.link("activation", descending=False)
        for payload in payloads():
            outbox = Outbox()
            sender, receiver = ActivationSender(group, 1, outbox, 0), ActivationReceiver(group, 0)
            for repetition in range(3):
                sent = repeated(payload, repetition)
                if rank == 0:
                    sender.send(sent, CPU)
                    continue
                came = receiver.receive(CPU)
                assert alike(tree.map_tensors(Tensor.detach, came), tree.map_tensors(Tensor.detach, sent))
                assert [leaf.requires_grad for leaf in leaves_of(describe(came))] == [
                    leaf.requires_grad for leaf in leaves_of(describe(sent))
                ]
                assert all(tensor.is_leaf for _, tensor in tree.flatten(came))
            outbox.wait()
        assert topology.group(Axis.PIPE) is not group


def test_trees_arrive_as_they_were_sent() -> None:
    run_distributed(send_payloads, 2)


def count_messages(rank: int, world_size: int) -> list[int]:
    """Return the messages of each of six sends: training, twice; evaluation, twice; training; after forgetting."""
    counts = []
    with connected(pipe=2) as topology:
        group = topology.link("activation", descending=False)
        outbox = Outbox()
        sender, receiver = ActivationSender(group, 1, outbox, 0), ActivationReceiver(group, 0)
        real = ops.send_start
        sends: list[Tensor] = []

        def counted(tensor: Tensor, group: Group, *, to: int) -> ops.Work | None:
            sends.append(tensor)
            return real(tensor, group, to=to)

        with mock.patch.object(ops, "send_start", counted):
            for training in (True, True, False, False, True, None):
                if training is None:
                    sender.forget()
                    receiver.forget()
                size = 5 if training is None else 3 if training else 4
                sends.clear()
                with torch.set_grad_enabled(training is not False):
                    if rank == 0:
                        sender.send((torch.ones(size), torch.ones(2)), CPU)
                    else:
                        assert receiver.receive(CPU)[0].shape == (size,)
                counts.append(len(sends))
        outbox.wait()
    return counts


def test_a_header_travels_once_for_training_and_once_for_evaluation() -> None:
    assert run_distributed(count_messages, 2)[0] == [4, 2, 4, 2, 2, 4]


def send_changes(rank: int, world_size: int) -> list[str]:
    problems = []
    with connected(pipe=2) as topology:
        first = {"x": torch.zeros(2, 8), "skip": torch.zeros(2), "epoch": 1}
        changes: tuple[dict[str, Any], ...] = (
            {"x": torch.zeros(2, 9)},
            {"x": torch.zeros(2, 8, dtype=torch.float64)},
            {"skip": None},
            {"more": torch.zeros(2)},
            {"x": torch.zeros(2, 8, requires_grad=True)},
            {"epoch": 2},
        )
        for change in changes:
            outbox = Outbox()
            group = topology.link("activation", descending=False)
            if rank == 0:
                sender = ActivationSender(group, 1, outbox, 5)
                sender.send(first, CPU)
                with pytest.raises(ScheduleError) as raised:
                    sender.send(first | change, CPU)
                problems.append(str(raised.value))
            else:
                ActivationReceiver(group, 0).receive(CPU)
            outbox.wait()
    return problems


def test_a_change_between_micro_batches_is_refused_and_named() -> None:
    shape, dtype, fewer, more, gradient, constant = run_distributed(send_changes, 2)[0]
    assert shape.startswith("the output of pipeline stage 5 changed between micro-batches: field ['x'] was [2, 8]")
    assert "now is [2, 9]" in shape
    assert "field ['x'] was [2, 8] torch.float32, now is [2, 8] torch.float64" in dtype
    assert "['skip'], ['x'] before, ['x'] now" in fewer
    assert "['skip'], ['x'] before, ['more'], ['skip'], ['x'] now" in more
    assert "field ['x'] now needs a gradient" in gradient
    assert "numbers and strings beside the tensors are sent once" in constant


class SlowWork:
    """A send that is done when it is told so."""

    def __init__(self) -> None:
        self.done = False
        self.waited = False

    def is_completed(self) -> bool:
        return self.done

    def wait(self) -> None:
        self.waited = True


def test_tensors_live_until_their_sends_are_done() -> None:
    works: list[SlowWork] = []

    def start(tensor: Tensor, group: Group, *, to: int) -> SlowWork:
        works.append(SlowWork())
        return works[-1]

    outbox = Outbox()
    with mock.patch.object(ops, "send_start", start):
        for number in range(3):
            outbox.send(torch.full((2,), float(number)), None, 1)
        works[1].done = True
        outbox.send(torch.full((2,), 3.0), None, 1)
    assert [float(kept[0]) for kept, _ in outbox._flying] == [0.0, 2.0, 3.0]
    outbox.wait()
    assert [work.waited for work in works] == [True, False, True, True]
    assert outbox._flying == []
