"""Updates in chunks have the bits of updates at once, whatever the chunks, and convert what is kept in less."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from scaling.core.nn.parameter import meta
from scaling.core.optimizer import update
from scaling.core.optimizer.flat_buffer import build_buffers, gradient_dtype, left_out, master_dtype
from scaling.core.optimizer.optimizer import Optimizer
from scaling.core.optimizer.rule import AdamW, Pace
from scaling.core.optimizer.shard import FlatShard, make_shard, slot_bytes
from scaling.core.optimizer.update import ChunkedUpdate, cut, scratch_for
from scaling.core.topology.layout import Layout
from scaling.core.topology.placement import USUAL
from scaling.core.topology.topology import Topology
from tests.core.optimizer.plain_model import SAMPLES, make, train_step, values
from tests.distributed import run_distributed
from tests.reference.compare import close
from tests.reference.training import Part, join, parts_of
from tests.reference.worlds import connected, random

SLOTS = ("exp_avg", "exp_avg_sq")
LESS: dict[str, Any] = {"grad_dtype": "bfloat16", "exp_avg_dtype": "bfloat16", "exp_avg_sq_dtype": "bfloat16"}


@given(lengths=st.lists(st.integers(0, 500)), most=st.integers(1, 300))
def test_chunks_cover_everything_once_in_order_and_are_full(lengths: list[int], most: int) -> None:
    chunks = cut(lengths, most=most)
    pieces = [piece for chunk in chunks for piece in chunk]
    for number, length in enumerate(lengths):
        ranges = [(start, stop) for which, start, stop in pieces if which == number]
        assert sum(stop - start for start, stop in ranges) == length
        assert all(start < stop for start, stop in ranges)
        assert all(before[1] == after[0] for before, after in pairwise(ranges))
    assert pieces == sorted(pieces)
    sizes = [sum(stop - start for _, start, stop in chunk) for chunk in chunks]
    assert sizes[:-1] == [most] * (len(sizes) - 1)
    assert all(0 < size <= most for size in sizes)


@given(bounds=st.lists(st.integers(0, 50), max_size=10), length=st.integers(50, 60))
def test_what_is_left_out_are_the_other_elements_in_order(bounds: list[int], length: int) -> None:
    ordered = sorted(bounds)
    ranges = [slice(start, stop) for start, stop in zip(ordered[::2], ordered[1::2], strict=False)]
    inside = {index for one in ranges for index in range(one.start, one.stop)}
    left = left_out(ranges, length)
    assert all(one.start < one.stop for one in left)
    assert [index for one in left for index in range(one.start, one.stop)] == sorted({*range(length)} - inside)


@pytest.mark.parametrize("asked", [torch.float32, torch.bfloat16])
def test_gradients_are_of_the_type_asked_for_and_double_ones_stay_double(asked: torch.dtype) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        double = dtype == torch.float64
        assert gradient_dtype(dtype, asked) == (torch.float64 if double else asked)
        assert master_dtype(dtype) == (torch.float64 if double else torch.float32)


def shards_of(lengths: list[int], rule: AdamW, grad_dtype: torch.dtype) -> list[FlatShard]:
    found = []
    for number, length in enumerate(lengths):
        parameter = nn.Parameter(random(length, seed=number).float())
        (buffer,) = build_buffers([[(parameter, meta(parameter))]], Layout(), bucket_size=100, grad_dtype=grad_dtype)
        found.append(make_shard(buffer, slice(0, len(buffer.weights)), rule, USUAL, Topology.single()))
    return found


def updated(shards: list[FlatShard], rule: AdamW, *, skip_in: int = 0) -> None:
    """Make three updates of random gradients, that of step `skip_in` skipped."""
    updater = ChunkedUpdate(shards, rule, scratch_for(shards))
    for step in (1, 2, 3):
        for number, shard in enumerate(shards):
            shard.gradients.copy_(random(len(shard.master), seed=10 * step + number))
            if step == skip_in:
                shard.gradients[5] = torch.nan
        skip = torch.tensor(float(step == skip_in))
        updater.update(torch.tensor(0.3, dtype=torch.float64), Pace(0.01, 0.1, torch.tensor(float(step)), skip))
        assert all(not shard.gradients.any() for shard in shards)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 700), min_size=1, max_size=5),
    chunk=st.sampled_from([64, 192, 1024]),
    narrow=st.sampled_from([(), SLOTS[:1], SLOTS]),
    grad_dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_chunks_change_no_bit(lengths: list[int], chunk: int, narrow: tuple[str, ...], grad_dtype: torch.dtype) -> None:
    rule = AdamW(bfloat16_slots=narrow)
    at_once, in_chunks = (shards_of(lengths, rule, grad_dtype) for _ in range(2))
    updated(at_once, rule)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(update, "CPU_CHUNK", chunk)
        assert scratch_for(in_chunks).numel() <= chunk * 3
        updated(in_chunks, rule)
    for one, other in zip(at_once, in_chunks, strict=True):
        assert torch.equal(one.master, other.master)
        for slot in SLOTS:
            assert one.slots[slot].dtype == (torch.bfloat16 if slot in narrow else torch.float32)
            assert torch.equal(one.slots[slot], other.slots[slot])


@pytest.mark.parametrize("narrow", [(), SLOTS[:1], SLOTS[1:], SLOTS])
def test_moments_in_bfloat16_are_those_of_float32_rounded_after_each_update(narrow: tuple[str, ...]) -> None:
    rule = AdamW(bfloat16_slots=narrow)
    (shard,) = shards_of([100], rule, torch.float32)
    weight, kept = shard.master.clone(), {slot: torch.zeros(len(shard.master)) for slot in SLOTS}
    updated([shard], rule)
    for step in (1, 2, 3):
        gradient = random(len(weight), seed=10 * step).float() * 0.3
        torch._fused_adamw_(
            [weight],
            [gradient],
            [kept["exp_avg"]],
            [kept["exp_avg_sq"]],
            [],
            [torch.tensor(float(step))],
            lr=0.01,
            beta1=0.9,
            beta2=0.95,
            weight_decay=0.1,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )
        for slot in narrow:
            kept[slot] = kept[slot].bfloat16().float()
    assert torch.equal(shard.master, weight)
    for slot in SLOTS:
        assert torch.equal(shard.slots[slot].float(), kept[slot])


def test_a_skipped_update_leaves_no_trace_in_bfloat16() -> None:
    rule = AdamW(bfloat16_slots=SLOTS)
    (shard,) = shards_of([100], rule, torch.bfloat16)
    shard.slots["exp_avg"].fill_(0.3)
    before = [vector.clone() for vector in (shard.master, *shard.slots.values())]
    updater = ChunkedUpdate([shard], rule, scratch_for([shard]))
    shard.gradients.fill_(torch.nan)
    updater.update(torch.ones((), dtype=torch.float64), Pace(0.01, 0.1, torch.ones(()), torch.ones(())))
    assert all(map(torch.equal, before, (shard.master, *shard.slots.values())))
    assert not shard.gradients.any()


def trained(
    rank: int, world_size: int, dtype: torch.dtype, options: dict[str, Any]
) -> tuple[list[float], list[Part], bool]:
    """Return the norms and tensors after three steps, and whether all gradients are clear."""
    with connected(data=world_size) as topology:
        module, optimizer = make(topology, dtype=dtype, **options)
        norms = []
        for step in (1, 2, 3):
            found = train_step(module, optimizer, step, dtype=dtype)
            norms.append(optimizer.step(step, weight=found.weight).global_grad_norm.item())
        clear = all(not buffer.gradients.any() for buffer in optimizer._buffers)
        return norms, parts_of((*module.global_tensors(), *optimizer.global_tensors())), clear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_less_memory_is_the_same_run_with_and_without_zero(dtype: torch.dtype) -> None:
    """Bit by bit: over two ranks sums do not depend on it, and without clipping nor does anything else."""
    options = {**LESS, "gradient_clipping": 0.0, "allreduce_bucket_size": 100}
    whole, sharded = (run_distributed(trained, 2, dtype, {**options, "zero": zero}) for zero in (False, True))
    assert whole[0][0] == pytest.approx(sharded[0][0], rel=1e-6)
    expected, found = (join([parts for _, parts, _ in results]) for results in (whole, sharded))
    assert set(found) == set(expected)
    for key, value in found.items():
        assert torch.equal(value, expected[key]), key
    assert all(clear for *_, clear in (*whole, *sharded))


def test_float64_stays_float64() -> None:
    (module, optimizer), (plain, its) = make(**LESS), make()
    for step in (1, 2):
        optimizer.step(step, weight=train_step(module, optimizer, step).weight)
        its.step(step, weight=train_step(plain, its, step).weight)
    assert {buffer.gradients.dtype for buffer in optimizer._buffers} == {torch.float64}
    assert all(torch.equal(value, values(plain)[key]) for key, value in values(module).items())
    assert all(values.dtype == torch.float64 for tensor in optimizer.global_tensors() for _, values in tensor.parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_in_bfloat16_are_near_those_in_float32(dtype: torch.dtype) -> None:
    """Four contributions, each sum off by at most 2^-8 of it; the moments with beta1 = 0 are the clipped gradients."""

    def gradients(optimizer: Optimizer) -> dict[str, Tensor]:
        found = {part.key: torch.from_numpy(part.values) for part in parts_of(optimizer.global_tensors())}
        return {key: value for key, value in found.items() if "exp_avg." in key}

    less: dict[str, Any] = {"grad_dtype": "bfloat16"}
    scaler = {"initial_scale": 256.0}
    (module, optimizer), (plain, its) = (
        make(dtype=dtype, beta1=0.0, loss_scaler=scaler, **options) for options in (less, {})
    )
    report = optimizer.step(1, weight=train_step(module, optimizer, 1, dtype=dtype).weight)
    expected = its.step(1, weight=train_step(plain, its, 1, dtype=dtype).weight)
    assert {parameter.grad.dtype for parameter in module.parameters() if parameter.grad is not None} == {torch.bfloat16}
    assert float(report.global_grad_norm) == pytest.approx(float(expected.global_grad_norm), rel=SAMPLES * 2.0**-8)
    for key, value in gradients(its).items():
        close(gradients(optimizer)[key], value, key, tolerance=SAMPLES * 2.0**-8)


@pytest.mark.parametrize(
    ("dtype", "narrow", "expected"),
    [(torch.float32, (), 8), (torch.bfloat16, SLOTS[:1], 6), (torch.float16, SLOTS, 4), (torch.float64, SLOTS, 16)],
)
def test_bytes_of_the_slots(dtype: torch.dtype, narrow: tuple[str, ...], expected: int) -> None:
    assert slot_bytes(AdamW(bfloat16_slots=narrow), dtype) == expected
