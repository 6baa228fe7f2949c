"""The global gradient norm counts every parameter of the whole model once, wherever its copies are."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scaling.core.nn.parameter import meta
from scaling.core.optimizer.clip import squared_norm
from scaling.core.optimizer.optimizer import Optimizer
from scaling.core.pipeline.module import ParallelModule
from scaling.core.topology.layout import Axis, Layout
from scaling.core.topology.placement import USUAL, Placement, tied
from scaling.core.topology.topology import Topology
from tests.distributed import run_distributed
from tests.reference.models import Loss, Model, micro_batches
from tests.reference.sharding import assembled
from tests.reference.training import build
from tests.reference.worlds import connected, random, topology_config


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("replicas", [1, 2, 4])
@pytest.mark.parametrize("tie", [None, (0,), (0, 2), (1, 2)])
def test_a_buffer_counts_on_one_of_its_model_replicas_and_one_data_rank_or_in_slices_on_all(
    tie: tuple[int, ...] | None, replicas: int, zero: bool
) -> None:
    layout = Layout(pipe=3, data=3, model=4)
    placements = USUAL.having(Axis.MODEL, Placement(copies=replicas))
    if tie is not None:
        placements = placements.having(Axis.PIPE, tied(tie))
    for shortest in (placements, placements.within(layout)):
        held = shortest.cut(shortest.batch_axes(layout)) if zero else shortest
        for rank in range(layout.world_size):
            at = layout.coordinate(rank)
            if tie is not None and at.pipe not in tie:
                continue  # holds no such buffer
            tie_owner = tie is None or at.pipe == tie[0]
            expected = at.model % replicas == 0 and (zero or at.data == 0) and tie_owner
            assert held.stands_for(layout, at) is expected


def test_norms_of_several_types_and_of_nothing() -> None:
    topology = Topology.single()
    tensors = [random(100, seed=1), random(7, seed=2, dtype=torch.float32), torch.tensor([3e4]).float()]
    squared = squared_norm(tensors, topology)
    assert squared.dtype == torch.float64
    assert float(squared) == pytest.approx(sum(float(t.double().square().sum()) for t in tensors), rel=1e-6)
    assert float(squared_norm([], topology)) == 0.0
    assert not squared_norm([torch.tensor([1.0, torch.inf])], topology).isfinite()
    assert not squared_norm([torch.tensor([1.0, torch.nan])], topology).isfinite()


@pytest.mark.parametrize("length", [1, 1023, 1024, 1025, 3_000_011])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_norm_of_a_vector_is_exact_to_rounding_however_long_it_is(length: int, dtype: torch.dtype) -> None:
    """PyTorch's own is 2e-4 short for 3 million elements in float32 on a CPU, and more for more."""
    vector = random(length, seed=1).to(dtype)
    expected = float(vector.double().square().sum())
    assert float(squared_norm([vector], Topology.single())) == pytest.approx(expected, rel=1e-6)


def observed_norms(rank: int, world_size: int, layout: dict[str, Any], zero: bool) -> tuple[float, dict[str, Tensor]]:
    """Return the reported norm, and without ZeRO this rank's summed gradients, whole along the model axis."""
    model = Model(kv_heads=1)
    config = topology_config(**{"global_batch_size": 8, "micro_batch_size": 1, **layout})
    with Topology.connect(config) as topology:
        module, optimizer = build(model, config, topology, {"gradient_clipping": 0.01, "zero": zero})
        gradients = {} if zero else keep_gradients(module, optimizer, topology)
        loss = module.train_step(
            micro_batches(model, 1, config, topology), Loss(model, topology), gradient_scale=optimizer.gradient_scale
        )
        report = optimizer.step(1, weight=loss.weight)
        return report.global_grad_norm.item(), gradients


def keep_gradients(module: ParallelModule, optimizer: Optimizer, topology: Topology) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    described = {
        piece.key: (parameter, piece)
        for parameter, description in module.parameters_with_meta()
        for piece in description.pieces
    }

    def observe(tensors: Any, unscale: Tensor) -> None:
        gradients: dict[nn.Parameter, Tensor] = {}
        for tensor in tensors:
            parameter, piece = described[tensor.key]
            ((box, view),) = tensor.parts
            assert box == piece.box
            gradient = gradients.setdefault(parameter, torch.zeros_like(parameter))
            piece.local(gradient).copy_(view * unscale)
        for parameter, gradient in gradients.items():
            found.update(assembled(gradient, meta(parameter), topology))

    optimizer.observer = observe
    return found


@pytest.mark.parametrize(
    "layout",
    [
        {"model": 4, "sequence_parallel": True},
        {"pipe": 2, "data": 2, "model": 2},
        {"pipe": 4, "data": 2},
    ],
)
def test_the_norm_is_that_of_all_gradients_each_counted_once(layout: dict[str, Any]) -> None:
    """Tied embeddings, norms, and key-value heads that ranks share are in the model."""
    expected, whole = observed_norms(0, 1, {}, False)
    world = 1
    for axis in ("pipe", "data", "model"):
        world *= layout.get(axis, 1)
    for zero in (False, True) if layout.get("data", 1) > 1 else (False,):
        for norm, gradients in run_distributed(observed_norms, world, layout, zero):
            assert norm == pytest.approx(expected, rel=1e-12)
            for key, gradient in gradients.items():
                assert torch.allclose(gradient, whole[key], rtol=1e-10, atol=1e-13), key
    assert expected**2 == pytest.approx(sum(float(g.square().sum()) for g in whole.values()), rel=1e-12)


def clip_and_look(rank: int, world_size: int, clip: float) -> tuple[float, float]:
    """Return the reported norm, and the norm of what reached the moments (with beta1 = 0: the clipped gradient)."""
    model = Model()
    config = topology_config(data=2, global_batch_size=8, micro_batch_size=1)
    with connected(data=2) as topology:
        module, optimizer = build(model, config, topology, {"gradient_clipping": clip, "beta1": 0.0, "zero": False})
        loss = module.train_step(
            micro_batches(model, 1, config, topology), Loss(model, topology), gradient_scale=optimizer.gradient_scale
        )
        report = optimizer.step(1, weight=loss.weight)
        moments = [view for t in optimizer.global_tensors() if "exp_avg." in t.key for _, view in t.parts]
        return report.global_grad_norm.item(), sum(float(view.square().sum()) for view in moments) ** 0.5


def test_gradients_are_scaled_down_to_the_limit_and_never_up() -> None:
    for clip, limit in ((0.5, 0.5), (1000.0, None), (0.0, None)):
        for norm, reached in run_distributed(clip_and_look, 2, clip):
            assert norm > 1.0
            assert reached == pytest.approx(norm if limit is None else limit, rel=1e-12)


@pytest.mark.parametrize("order", list(product((0, 1), repeat=2)))
def test_ranks_add_up_their_squares(order: tuple[int, int]) -> None:
    assert run_distributed(add_squares, 2, order) == [25.0 * sum(order)] * 2


def add_squares(rank: int, world_size: int, order: tuple[int, int]) -> float:
    with connected(pipe=2) as topology:
        return squared_norm([torch.tensor([3.0, 4.0])] * order[rank], topology).item()
