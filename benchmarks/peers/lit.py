"""LitGPT: its GPT class, compiled as a whole, in DistributedDataParallel where there are several processes."""

from __future__ import annotations

from typing import Any

import torch
from litgpt import GPT, Config
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from peers.common import CPU, Job, Step, connect, cross_entropy, tokens, training


def step(place: Any, **job: Any) -> tuple[Step, torch.device]:
    plan = Job(**job)
    torch.manual_seed(1)
    gpt = GPT(
        Config(
            name="peer",
            block_size=plan.sequence,
            vocab_size=plan.vocabulary,
            padded_vocab_size=plan.vocabulary,
            n_layer=plan.layers,
            n_head=plan.heads,
            n_embd=plan.hidden,
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            norm_eps=plan.epsilon,
            mlp_class_name="LLaMAMLP",
            intermediate_size=plan.intermediate,
        )
    )
    gpt.apply(gpt._init_weights)
    model: nn.Module = gpt
    if place.world_size > 1:
        connect(place)
        model = DistributedDataParallel(gpt, gradient_as_bucket_view=True)
    compiled = torch.compile(model)
    ids, targets = tokens(plan, place.world_size)
    return training(lambda: cross_entropy(compiled(ids), targets), model.parameters()), CPU
