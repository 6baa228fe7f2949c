"""Flat buffers: every parameter in one place, buckets that cut evenly, and the way back to global tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from scaling.core.boxes import Box, first_overlap
from scaling.core.nn.init import Constant
from scaling.core.nn.parameter import ParameterMeta, Piece, annotate, fused_parameter, meta, share, update_meta
from scaling.core.nn.shard import Shard, even_shard, padded_shard
from scaling.core.optimizer.flat_buffer import (
    ALIGNMENT,
    BufferKind,
    FlatBuffer,
    build_buffers,
    gradient_dtype,
    places,
    plan,
    plan_whole,
)
from scaling.core.topology.layout import Axis, Layout
from scaling.core.topology.placement import CUT, SAME_IN_PARTS, USUAL, Placement, tied

SIZES = st.lists(st.integers(0, 2000), min_size=1, max_size=20)


@settings(max_examples=200)
@given(sizes=SIZES, bucket_size=st.integers(1, 5000), parts=st.integers(1, 8))
def test_plans_place_every_parameter_once_and_cut_buckets_evenly(
    sizes: list[int], bucket_size: int, parts: int
) -> None:
    placements, buckets = plan(sizes, bucket_size=bucket_size, parts=parts)
    assert [place.stop - place.start for place in placements] == sizes
    assert all(place.start % ALIGNMENT == 0 for place in placements)
    assert all(before.stop <= after.start for before, after in pairwise(placements))
    assert buckets[0].start == 0
    assert all(before.stop == after.start for before, after in pairwise(buckets))
    for place in placements:
        bucket = buckets[place.bucket]
        assert bucket.start <= place.start <= place.stop <= bucket.stop
    for number, bucket in enumerate(buckets):
        held = [place for place in placements if place.bucket == number]
        assert held
        slices = [bucket.slice_of(index, parts) for index in range(parts)]
        assert [slices[0].start, slices[-1].stop] == [bucket.start, bucket.stop]
        assert all(one.stop == other.start for one, other in pairwise(slices))
        assert all((part.stop - part.start) % ALIGNMENT == 0 for part in slices)
        # As large as asked for and no larger than the last parameter makes it; padding below a parameter's and a cut's.
        if number < len(buckets) - 1:
            assert bucket.stop - bucket.start >= bucket_size
        assert held[-1].start - bucket.start < bucket_size or len(held) == 1
        padding = bucket.stop - bucket.start - sum(place.stop - place.start for place in held)
        assert padding < ALIGNMENT * (len(held) + parts)


@settings(max_examples=200)
@given(sizes=SIZES, bucket_size=st.integers(1, 5000), parts=st.integers(1, 8))
def test_plans_for_whole_parameters_cut_none_and_waste_little(sizes: list[int], bucket_size: int, parts: int) -> None:
    placements, buckets = plan_whole(sizes, bucket_size=bucket_size, parts=parts)
    assert [place.stop - place.start for place in placements] == sizes
    assert all(place.start % ALIGNMENT == 0 for place in placements)
    in_order = sorted(placements, key=lambda place: (place.start, place.stop))
    assert all(before.stop <= after.start for before, after in pairwise(in_order))
    assert buckets[0].start == 0
    assert all(before.stop == after.start for before, after in pairwise(buckets))
    for number, bucket in enumerate(buckets):
        held = [place for place in placements if place.bucket == number]
        slices = [bucket.slice_of(index, parts) for index in range(parts)]
        assert slices[-1].stop == bucket.stop
        for place in held:
            assert any(part.start <= place.start <= place.stop <= part.stop for part in slices)
        aligned = [-(-(place.stop - place.start) // ALIGNMENT) * ALIGNMENT for place in held]
        padding = bucket.stop - bucket.start - sum(aligned)
        if number < len(buckets) - 1:
            assert sum(aligned) >= bucket_size
            assert padding <= (bucket.stop - bucket.start) / 8
        assert padding <= (parts - 1) * max(aligned)


def test_matrices_of_equal_size_are_dealt_without_waste() -> None:
    _, buckets = plan_whole([64 * 64] * 12, bucket_size=1, parts=4)
    assert [bucket.stop - bucket.start for bucket in buckets] == [4 * 64 * 64] * 3


def test_a_bucket_of_whole_matrices_closes_as_soon_as_it_is_full() -> None:
    _, buckets = plan_whole([64 * 64] * 4, bucket_size=2 * 64 * 64, parts=1)
    assert [bucket.stop - bucket.start for bucket in buckets] == [2 * 64 * 64] * 2


def test_matrices_are_dealt_from_the_largest_on() -> None:
    _, (bucket,) = plan_whole([64 * 64, 64 * 64, 2 * 64 * 64], bucket_size=2**20, parts=2)
    assert bucket.stop - bucket.start == 4 * 64 * 64  # dealt in their order they would need six


def kind(dtype: torch.dtype = torch.float32) -> BufferKind:
    return BufferKind(group=0, lr_scale=1.0, dtype=dtype, placements=USUAL)


def named(
    parameter: nn.Parameter, name: str, along: Mapping[Axis, Placement] | None = None, *, lr_scale: float = 1.0
) -> nn.Parameter:
    update_meta(parameter, lr_scale=lr_scale)
    for axis, placement in (along or {}).items():
        share(parameter, axis, placement)
    return annotate(parameter, meta(parameter).named(name))


def with_meta(*parameters: nn.Parameter) -> list[tuple[nn.Parameter, ParameterMeta]]:
    return [(parameter, meta(parameter)) for parameter in parameters]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_parameters_and_gradients_become_views(dtype: torch.dtype) -> None:
    shapes = [(3, 5), (7,), (2, 3, 4)]
    parameters = [named(nn.Parameter(torch.randn(shape, dtype=dtype)), str(shape)) for shape in shapes]
    values = [parameter.detach().clone() for parameter in parameters]
    buffer = FlatBuffer(kind(dtype), with_meta(*parameters), bucket_size=32, parts=2)
    assert buffer.weights.dtype == dtype
    assert buffer.gradients.dtype == gradient_dtype(dtype) == (dtype if dtype == torch.float64 else torch.float32)
    for parameter, value, place in zip(parameters, values, buffer.placements, strict=True):
        assert torch.equal(parameter, value)
        buffer.weights[place.start : place.stop] = 2.0
        assert parameter.eq(2).all()
        assert parameter.grad is not None
        buffer.gradients[place.start : place.stop] = 3.0
        assert parameter.grad.eq(3).all()
        assert parameter.grad.shape == parameter.shape
    padding = torch.ones(len(buffer.weights), dtype=torch.bool)
    for place in buffer.placements:
        padding[place.start : place.stop] = False
    assert not buffer.weights[padding].any()
    assert not buffer.gradients[padding].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_backward_passes_add_to_half_precision_gradients_in_float32(dtype: torch.dtype) -> None:
    parameter = named(nn.Parameter(torch.ones(4, dtype=dtype)), "w")
    buffer = FlatBuffer(kind(dtype), with_meta(parameter), bucket_size=64, parts=1)
    # 1 + 2^-12 is 1 in either type: adding them one by one would lose all of it.
    for scale in (1.0, *[2.0**-12] * 64):
        torch.autograd.backward((parameter * torch.tensor(scale, dtype=dtype)).sum())
    assert parameter.grad is not None
    assert parameter.grad.data_ptr() == buffer.gradients.data_ptr()
    assert parameter.grad.tolist() == [1 + 2.0**-6] * 4


def test_a_parameter_used_twice_adds_once() -> None:
    parameter = named(nn.Parameter(torch.ones(4)), "w")
    buffer = FlatBuffer(kind(), with_meta(parameter), bucket_size=64, parts=1)
    arrivals: list[int] = []
    parameter.register_post_accumulate_grad_hook(lambda _: arrivals.append(1))
    for _ in range(3):
        torch.autograd.backward((parameter * parameter.detach() + parameter).sum())
    assert arrivals == [1, 1, 1]
    assert buffer.gradients[:4].tolist() == [6.0] * 4


@dataclass(frozen=True)
class Cut:
    """A parameter of one or more tensors, and how each is cut over the model ranks."""

    shapes: tuple[tuple[int, ...], ...]
    shards: tuple[tuple[Shard | None, ...], ...]
    """Of each tensor, by model rank."""

    def on(self, rank: int, name: str) -> nn.Parameter:
        """Return the local parameter; its values are the elements' numbers in their tensors, padding is zero."""
        labels = [""] if len(self.shapes) == 1 else [f"piece_{number}" for number in range(len(self.shapes))]
        described = fused_parameter(
            {
                label: (shape, shards[rank], Constant(0.0))
                for label, shape, shards in zip(labels, self.shapes, self.shards, strict=True)
            }
        )
        parameter = annotate(nn.Parameter(torch.zeros(described.shape)), meta(described).named(f"{name}.joined.weight"))
        for piece in meta(parameter).pieces:
            piece.local(parameter.detach()).copy_(numbers(piece)[slices(piece.box)])
        return parameter


def numbers(piece: Piece) -> Tensor:
    return torch.arange(1.0, prod(piece.shape) + 1).view(piece.shape)


def slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in zip(box.offset, box.stop, strict=True))


@st.composite
def cuts(draw: st.DrawFn, *, parts: int) -> Cut:
    """Draw the tensors of a parameter and their shards over `parts` ranks; the last may be padding."""
    columns = tuple(draw(st.lists(st.integers(1, 9), max_size=1)))
    shapes = tuple((rows, *columns) for rows in draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    dim = draw(st.sampled_from([None, 0, len(columns)]))

    def shards(size: int) -> Iterator[Shard | None]:
        for index in range(parts):
            if dim is None:
                yield None
            elif size % parts == 0:
                yield even_shard(size, parts, index, dim=dim, what="w")
            else:
                yield padded_shard(size, parts, index, dim=dim)

    return Cut(shapes, tuple(tuple(shards(shape[dim or 0])) for shape in shapes))


@st.composite
def models(draw: st.DrawFn) -> tuple[int, list[Cut]]:
    """Draw a number of model ranks and what they hold."""
    parts = draw(st.integers(1, 4))
    return parts, draw(st.lists(cuts(parts=parts), min_size=1, max_size=4))


@settings(max_examples=150)
@given(model=models(), data_ranks=st.integers(1, 4), bucket_size=st.integers(1, 400))
def test_what_all_ranks_own_are_the_global_tensors_each_element_once(
    model: tuple[int, list[Cut]], data_ranks: int, bucket_size: int
) -> None:
    """Buffers of every rank of the model axis, every data rank's slices: together the whole, without padding."""
    parts, held = model
    wholes: dict[str, Tensor] = {}
    rebuilt: dict[str, Tensor] = {}
    boxes: dict[str, list[Box]] = {}
    for rank in range(parts):
        # What is not cut lies on every rank; one of them stands for it.
        present = [(number, cut) for number, cut in enumerate(held) if rank == 0 or cut.shards[0][0] is not None]
        if not present:
            continue
        parameters = [cut.on(rank, f"layers.{number}") for number, cut in present]
        buffer = FlatBuffer(kind(), with_meta(*parameters), bucket_size=bucket_size, parts=data_ranks)
        for data in range(data_ranks):
            for bucket in buffer.buckets:
                owned = bucket.slice_of(data, data_ranks)
                for piece, found in buffer.boxes(owned, buffer.weights[owned]):
                    wholes[piece.key] = numbers(piece)
                    for box, view in found:
                        assert view.shape == box.shape
                        assert view.numel() == box.size > 0
                        rebuilt.setdefault(piece.key, torch.zeros(piece.shape))[slices(box)] += view
                        boxes.setdefault(piece.key, []).append(box)
                        view.add_(0.5)  # a view: loading writes through it
        for parameter in parameters:
            for piece in meta(parameter).pieces:
                local = piece.local(parameter.detach())
                assert local.frac().eq(0.5).all()
                local.zero_()
            assert not parameter.any(), "something was written to the padding"
    assert len(wholes) == sum(len(cut.shapes) for cut in held)
    assert all(torch.equal(rebuilt[key], whole) for key, whole in wholes.items())
    assert all(first_overlap(found) is None for found in boxes.values())


@settings(max_examples=100)
@given(model=models(), bucket_size=st.integers(1, 400), data=st.data())
def test_any_range_of_a_buffer_covers_those_elements_of_each_piece_that_lie_in_it(
    model: tuple[int, list[Cut]], bucket_size: int, data: st.DataObject
) -> None:
    """Against the elements one by one: where each lies in the buffer, and in which tensor."""
    parts, held = model
    rank = data.draw(st.integers(0, parts - 1))
    parameters = [cut.on(rank, f"layers.{number}") for number, cut in enumerate(held)]
    buffer = FlatBuffer(kind(), with_meta(*parameters), bucket_size=bucket_size, parts=1)
    total = len(buffer.weights)
    start, stop = sorted(data.draw(st.tuples(st.integers(0, total), st.integers(0, total))))
    lies_at = torch.arange(total)
    expected = {}
    for parameter, place in zip(parameters, buffer.placements, strict=True):
        local = lies_at[place.start : place.stop].view(parameter.shape)
        for piece in meta(parameter).pieces:
            whole = torch.full(piece.shape, -1)
            whole[slices(piece.box)] = piece.local(local)
            expected[piece.key] = torch.where((whole >= start) & (whole < stop), whole, -1)
    found = list(buffer.boxes(slice(start, stop), lies_at[start:stop]))
    assert [piece.key for piece, _ in found] == list(expected)  # also those that the range covers nothing of
    for piece, covered in found:
        whole = torch.full(piece.shape, -1)
        for box, positions in covered:
            whole[slices(box)] = positions
        assert torch.equal(whole, expected[piece.key])
        assert first_overlap([box for box, _ in covered]) is None


def test_boxes_of_a_range_lie_in_the_order_of_the_buffer_and_touch_what_follows_in_one() -> None:
    """Whole rows are one box: checkpoints copy and write boxes one by one."""
    shape = (6, 4)
    joined = Cut((shape, shape), ((None,), (None,))).on(0, "layers.0")
    buffer = FlatBuffer(kind(), with_meta(joined), bucket_size=64, parts=1)
    (first, its), (second, others) = buffer.boxes(slice(0, 64), buffer.weights)
    assert [piece.key for piece in (first, second)] == ["layers.0.piece_0.weight", "layers.0.piece_1.weight"]
    assert [box for box, _ in (*its, *others)] == [Box((0, 0), shape)] * 2
    (_, its), (_, others) = buffer.boxes(slice(6, 30), buffer.weights[6:30])
    assert [box for box, _ in its] == [Box((1, 2), (1, 2)), Box((2, 0), (4, 4))]
    assert [box for box, _ in others] == [Box((0, 0), (1, 4)), Box((1, 0), (1, 2))]


def names_of(buffers: Sequence[FlatBuffer]) -> list[list[str]]:
    return [[description.name for _, description in buffer.parameters] for buffer in buffers]


def test_parameters_are_sorted_by_kind_and_within_a_kind_from_the_last_to_the_first() -> None:
    layers = [
        [
            named(nn.Parameter(torch.zeros(4, 4)), f"{layer}.matrix", {Axis.MODEL: CUT}),
            named(nn.Parameter(torch.zeros(4)), f"{layer}.norm", {Axis.MODEL: SAME_IN_PARTS}),
            named(nn.Parameter(torch.zeros(4, dtype=torch.bfloat16)), f"{layer}.half"),
        ]
        for layer in range(3)
    ]
    both = named(nn.Parameter(torch.zeros(4)), "tied", {Axis.PIPE: tied((0, 1))})
    slow = named(nn.Parameter(torch.zeros(4)), "slow", lr_scale=0.5)
    first = with_meta(both, *(parameter for layer in layers for parameter in layer), slow)
    second = with_meta(named(nn.Parameter(torch.zeros(4)), "other group"))
    layout = Layout(pipe=2, data=2, model=2)
    buffers = build_buffers([first, second], layout, bucket_size=10**6)
    assert names_of(buffers) == [
        ["slow"],
        ["2.half", "1.half", "0.half"],
        ["2.norm", "1.norm", "0.norm"],
        ["2.matrix", "1.matrix", "0.matrix"],
        ["tied"],
        ["other group"],
    ]
    over_model = [buffer.kind.placements.on(Axis.MODEL) for buffer in buffers]
    assert [len(placement.holders(0, 2)) for placement in over_model] == [2, 2, 2, 1, 2, 2]
    assert [placement.gradient_in_parts for placement in over_model] == [False, False, True, False, False, False]
    assert [buffer.kind.placements.other_sums(layout) for buffer in buffers] == [
        *((), ()),
        ((Axis.MODEL, SAME_IN_PARTS),),
        (),
        ((Axis.PIPE, tied((0, 1))),),
        (),
    ]
    assert [buffer.kind.group for buffer in buffers] == [0, 0, 0, 0, 0, 1]
    located = places(buffers)
    assert len(located) == 12
    assert located[slow] == (0, 0)
    assert located[both] == (4, 0)


def test_one_model_rank_sums_nothing_over_the_model_axis() -> None:
    norm = named(nn.Parameter(torch.zeros(4)), "norm", {Axis.MODEL: SAME_IN_PARTS})
    (buffer,) = build_buffers([with_meta(norm)], Layout(), bucket_size=10)
    assert not buffer.kind.placements.on(Axis.MODEL).gradient_in_parts
    assert buffer.kind.placements.other_sums(Layout()) == ()


def test_placements_that_mean_the_same_in_a_layout_are_one_kind() -> None:
    """Heads that all model ranks share are summed like norms; a tie within one stage is none."""
    parameters = [
        named(nn.Parameter(torch.zeros(4)), "norm", {Axis.MODEL: SAME_IN_PARTS}),
        named(nn.Parameter(torch.zeros(4)), "head", {Axis.MODEL: Placement(copies=4, gradient_in_parts=True)}),
        named(nn.Parameter(torch.zeros(4)), "tied", {Axis.MODEL: SAME_IN_PARTS, Axis.PIPE: tied((0,))}),
    ]
    for layout in (Layout(model=4), Layout(pipe=2, data=2, context=2, model=4)):
        assert names_of(build_buffers([with_meta(*parameters)], layout, bucket_size=10)) == [["tied", "head", "norm"]]
    apart = build_buffers([with_meta(*parameters)], Layout(model=8), bucket_size=10)
    assert names_of(apart) == [["tied", "norm"], ["head"]]


def test_buckets_divide_by_the_ranks_over_which_the_gradient_is_summed_jointly() -> None:
    layout = Layout(data=2, context=3, model=5)
    plain, own = nn.Parameter(torch.zeros(4)), named(nn.Parameter(torch.zeros(4)), "own", {Axis.CONTEXT: CUT})
    buffers = build_buffers([with_meta(plain, own)], layout, bucket_size=1)
    assert [buffer.buckets[-1].stop for buffer in buffers] == [ALIGNMENT * 2, ALIGNMENT * 2 * 3]
    assert [buffer.kind.placements.batch_axes(layout) for buffer in buffers] == [
        (Axis.DATA,),
        (Axis.DATA, Axis.CONTEXT),
    ]


@pytest.mark.parametrize("along", [{Axis.PIPE: tied((0, 2))}, {Axis.CONTEXT: tied((0, 1))}])
def test_what_is_tied_lies_in_one_order_wherever_the_layers_are(along: dict[Axis, Placement]) -> None:
    """Two ties with parameters of several sizes, whose layers come in any order, and theirs too."""
    sizes = {"a.bias": 3, "a.weight": 70, "b.bias": 5, "b.weight": 130}
    placements = set()
    for order in permutations(sizes):
        parameters = [named(nn.Parameter(torch.zeros(sizes[name])), name, along) for name in order]
        layout = Layout(pipe=3, data=2, context=3)
        (buffer,) = build_buffers([with_meta(*parameters)], layout, bucket_size=100)
        assert names_of([buffer]) == [sorted(sizes)]
        placements.add((tuple(buffer.placements), tuple(buffer.buckets)))
    assert len(placements) == 1


def test_a_group_may_be_empty_on_a_rank() -> None:
    assert build_buffers([[], []], Layout(), bucket_size=10) == []
