"""OLMo-core: its Transformer with blocks and head compiled, and its own DistributedDataParallel."""

from __future__ import annotations

from typing import Any

import torch
from olmo_core.nn.feed_forward import FeedForwardConfig
from olmo_core.nn.transformer import TransformerConfig
from torch.distributed.device_mesh import init_device_mesh

from peers.common import CPU, Job, Step, connect, tokens, training


def step(place: Any, **job: Any) -> tuple[Step, torch.device]:
    plan = Job(**job)
    torch.manual_seed(1)
    model = TransformerConfig.llama_like(
        d_model=plan.hidden,
        vocab_size=plan.vocabulary,
        n_layers=plan.layers,
        n_heads=plan.heads,
        layer_norm_eps=plan.epsilon,
        rope_theta=10000,
        feed_forward=FeedForwardConfig(hidden_size=plan.intermediate, bias=False),
    ).build(init_device="cpu")
    model.init_weights(max_seq_len=plan.sequence, device=CPU)
    model.apply_compile()
    if place.world_size > 1:
        connect(place)
        model.apply_ddp(init_device_mesh("cpu", (place.world_size,)), compile_enabled=True)
    ids, targets = tokens(plan, place.world_size)
    return training(lambda: model(ids, labels=targets).loss, model.parameters()), CPU
