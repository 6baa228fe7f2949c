"""DeepSpeed: ZeRO stage 1 over data-parallel ranks, and its PipelineModule.

On a CPU it would build a shared-memory operator for its collectives, which needs oneCCL; with gloo it does without.
"""

from __future__ import annotations

import os
from typing import Any

os.environ |= {"DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0"}

import deepspeed
import torch
from bare_loop import BareModel
from deepspeed.pipe import LayerSpec, PipelineModule
from torch import Tensor, nn

from peers import pytorch_layers
from peers.common import ADAMW, CLIPPING, CPU, Job, Step, cross_entropy, fused_adamw, tokens


def connect(place: Any) -> None:
    os.environ |= {
        "RANK": str(place.rank),
        "LOCAL_RANK": str(place.rank),
        "WORLD_SIZE": str(place.world_size),
        "LOCAL_SIZE": str(place.world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(place.port),
    }
    deepspeed.init_distributed(dist_backend="gloo")


def settings(plan: Job, place: Any) -> dict[str, Any]:
    return {
        "train_batch_size": plan.sequences,
        "train_micro_batch_size_per_gpu": plan.rows(place.world_size),
        "gradient_accumulation_steps": plan.micro_batches,
        "gradient_clipping": CLIPPING,
        "steps_per_print": 10**9,
    }


def sharded(place: Any, **job: Any) -> tuple[Step, torch.device]:
    plan = Job(**job)
    connect(place)
    torch.manual_seed(1)
    model = BareModel(
        vocabulary=plan.vocabulary,
        hidden=plan.hidden,
        layers=plan.layers,
        heads=plan.heads,
        intermediate=plan.intermediate,
        sequence=plan.sequence,
    )
    given = settings(plan, place) | {"zero_optimization": {"stage": 1}, "zero_allow_untested_optimizer": True}
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(model.parameters(), fused=True, **ADAMW), config=given
    )
    engine.compile()
    ids, targets = tokens(plan, place.world_size)

    def step() -> float:
        loss = engine(ids, targets)
        engine.backward(loss)
        engine.step()
        return float(loss.detach())

    return step, CPU


class Head(nn.Module):
    def __init__(self, plan: Job) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(plan.hidden, eps=plan.epsilon)
        self.head = nn.Linear(plan.hidden, plan.vocabulary, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(x))
        return logits


def pipeline(place: Any, **job: Any) -> tuple[Step, torch.device]:
    plan = Job(**job)
    connect(place)
    torch.manual_seed(1)
    layers = [
        LayerSpec(nn.Embedding, plan.vocabulary, plan.hidden),
        *(LayerSpec(pytorch_layers.Block, plan) for _ in range(plan.layers)),
        LayerSpec(Head, plan),
    ]
    model = PipelineModule(layers, num_stages=place.world_size, loss_fn=cross_entropy, partition_method="type:Block")
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=fused_adamw(model.parameters()), config=settings(plan, place)
    )
    micro_batch = tokens(plan, place.world_size)

    def step() -> float:
        return float(engine.train_batch(iter([micro_batch] * plan.micro_batches)))

    return step, CPU
