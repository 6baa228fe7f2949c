"""Plain PyTorch: DistributedDataParallel, ZeroRedundancyOptimizer, DTensor and torch.distributed.pipelining."""

from __future__ import annotations

from typing import Any

import torch
from bare_loop import BareModel
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from peers import pytorch_layers
from peers.common import ADAMW, CPU, Job, Step, clip_across_ranks, connect, cross_entropy, fused_adamw, tokens, training


def whole(place: Any, *, compiled: bool, sharded: bool = False, **job: Any) -> tuple[Step, torch.device]:
    """One process, or several with DistributedDataParallel and, `sharded`, ZeroRedundancyOptimizer."""
    plan = Job(**job)
    torch.manual_seed(1)
    model: nn.Module = BareModel(
        vocabulary=plan.vocabulary,
        hidden=plan.hidden,
        layers=plan.layers,
        heads=plan.heads,
        intermediate=plan.intermediate,
        sequence=plan.sequence,
    )
    optimizer: torch.optim.Optimizer | None = None
    if place.world_size > 1:
        connect(place)
        model = DistributedDataParallel(model, gradient_as_bucket_view=True)
        if sharded:
            from torch.distributed.optim import ZeroRedundancyOptimizer

            optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, fused=True, **ADAMW)
    if compiled:
        model = torch.compile(model)  # type: ignore[assignment]
    ids, targets = tokens(plan, place.world_size)
    return training(lambda: model(ids, targets), model.parameters(), optimizer), CPU


def tensor_parallel(place: Any, *, compiled: bool, **job: Any) -> tuple[Step, torch.device]:
    """Tensor parallelism with DTensor: linear layers, embedding, head and loss split over the ranks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        loss_parallel,
        parallelize_module,
    )

    plan = Job(**job)
    connect(place)
    torch.manual_seed(1)
    model = pytorch_layers.Decoder(plan)
    mesh = init_device_mesh("cpu", (place.world_size,))
    styles: dict[str, Any] = {
        "embedding": RowwiseParallel(input_layouts=Replicate()),
        "head": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False),
    }
    for name in ("query", "key", "value", "gate", "up"):
        styles[f"blocks.*.{name}"] = ColwiseParallel()
    for name in ("dense", "down"):
        styles[f"blocks.*.{name}"] = RowwiseParallel()
    parallelize_module(model, mesh, styles)
    if compiled:
        for block in model.blocks:
            block.compile()
    split = [parameter for parameter in model.parameters() if isinstance(parameter, DTensor)]
    alike = [parameter for parameter in model.parameters() if not isinstance(parameter, DTensor)]
    optimizer = torch.optim.AdamW([{"params": split}, {"params": alike}], fused=True, **ADAMW)
    ids, targets = tokens(plan, place.world_size)

    def step() -> float:
        with loss_parallel():
            loss = cross_entropy(model(ids), targets)
            loss.backward()
        clip_across_ranks(
            [parameter.grad.to_local() for parameter in split],  # type: ignore[union-attr]
            [parameter.grad for parameter in alike if parameter.grad is not None],
        )
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach().full_tensor() if isinstance(loss, DTensor) else loss.detach())

    return step, CPU


def pipeline(place: Any, *, compiled: bool, **job: Any) -> tuple[Step, torch.device]:
    """The 1F1B schedule of torch.distributed.pipelining, in the better of the cuts into two stages."""
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    plan = Job(**job)
    connect(place)
    torch.manual_seed(1)
    part: nn.Module = pytorch_layers.Decoder(plan).part(place.rank, plan.first_blocks)
    parameters = list(part.parameters())
    last = place.rank == place.world_size - 1
    if compiled:
        part.compile()
    stage = PipelineStage(part, place.rank, place.world_size, CPU)
    schedule = Schedule1F1B(stage, plan.micro_batches, loss_fn=cross_entropy)
    optimizer = fused_adamw(parameters)
    ids, targets = (rows.repeat(plan.micro_batches, 1) for rows in tokens(plan, place.world_size))

    def step() -> float:
        losses: list[Tensor] = []
        if last:
            schedule.step(target=targets, losses=losses, return_outputs=False)
        else:
            schedule.step(ids, return_outputs=False)
        clip_across_ranks([parameter.grad for parameter in parameters if parameter.grad is not None], [])
        optimizer.step()
        optimizer.zero_grad()
        return float(torch.stack(losses).mean().detach()) if last else 0.0

    return step, CPU
