"""torchtitan: its Llama 3 model with its compilation and parallelize function.

Its own configurations take attention from CUDA kernels; the layer for `scaled_dot_product_attention`, which it has as
well, runs on a CPU. With one process its model and per-block compilation are used, without FSDP around them. Its
kernels for experts need Triton, which has no CPU build; the module of these has a stand-in, for no expert is used.
"""

from __future__ import annotations

import os
import sys
import types
from typing import Any

import torch


class NoKernels(types.ModuleType):
    """Has whatever is imported from it."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


torch._utils._get_available_device_type = lambda: "cpu"  # without an accelerator it would take CUDA
sys.modules["torchtitan.distributed.minimal_async_ep"] = NoKernels("torchtitan.distributed.minimal_async_ep")

from torch import Tensor
from torchtitan.components.loss import CrossEntropyLoss
from torchtitan.config import CompileConfig, ParallelismConfig, TrainingConfig
from torchtitan.distributed import ParallelDims
from torchtitan.distributed import utils as titan
from torchtitan.distributed.compile import apply_compile
from torchtitan.models import llama3
from torchtitan.models.common import CosSinRoPE, Embedding, Linear, RMSNorm
from torchtitan.models.common.attention import ScaledDotProductAttention
from torchtitan.models.llama3.sharding import set_llama3_sharding_config

from peers.common import CPU, Job, Step, fused_adamw, tokens, training

BACKEND = "partial_dtensor"


def configuration(plan: Job) -> Any:
    """Return the configuration of a Llama of these sizes, from the parts that torchtitan builds its own from."""
    llama3.get_attention_config = lambda _: ScaledDotProductAttention.Config()
    return llama3.Llama3Model.Config(
        dim=plan.hidden,
        vocab_size=plan.vocabulary,
        tok_embeddings=Embedding.Config(
            num_embeddings=plan.vocabulary, embedding_dim=plan.hidden, param_init=llama3._EMBEDDING_INIT
        ),
        norm=RMSNorm.Config(normalized_shape=plan.hidden, eps=plan.epsilon, param_init=llama3._NORM_INIT),
        lm_head=Linear.Config(
            in_features=plan.hidden,
            out_features=plan.vocabulary,
            param_init=llama3._output_linear_init(plan.hidden),
        ),
        layers=llama3._build_llama3_layers(
            n_layers=plan.layers,
            dim=plan.hidden,
            n_heads=plan.heads,
            hidden_dim=plan.intermediate,
            rope=CosSinRoPE.Config(dim=plan.hidden // plan.heads, max_seq_len=plan.sequence, theta=10000),
            attn_backend="sdpa",
        ),
    )


def step(place: Any, **job: Any) -> tuple[Step, torch.device]:
    plan = Job(**job)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(place.port), "LOCAL_RANK": str(place.rank)}
    torch.distributed.init_process_group("gloo", rank=place.rank, world_size=place.world_size)
    torch.manual_seed(1)
    tensor = place.world_size if plan.layout == "tensor" else 1
    data = place.world_size if plan.layout == "data" else 1
    titan.set_spmd_backend(BACKEND)
    parallelism = ParallelismConfig(
        tensor_parallel_degree=tensor,
        data_parallel_shard_degree=data,
        spmd_backend=BACKEND,
        enable_sequence_parallel=False,
        fsdp_reshard_after_forward="never",
    )
    dims = ParallelDims.from_config(parallelism, place.world_size)
    dims.build_mesh()
    config = configuration(plan)
    set_llama3_sharding_config(config, enable_sp=False)
    model = config.build()
    compilation = CompileConfig(enable=True)
    if place.world_size == 1:
        apply_compile(model, compile_config=compilation, parallel_dims=dims)
    elif tensor > 1:
        model.parallelize(dims)
        apply_compile(model, compile_config=compilation, parallel_dims=dims)
    else:
        llama3.parallelize_llama(
            model,
            parallel_dims=dims,
            training=TrainingConfig(mixed_precision_param="float32", mixed_precision_reduce="float32"),
            parallelism=parallelism,
            compile_config=compilation,
            ac_config=None,
            dump_folder="",
        )
    with torch.no_grad():
        model.init_states(buffer_device=CPU)
    loss_function = CrossEntropyLoss.Config().build(compile_config=compilation)
    ids, targets = tokens(plan, place.world_size)
    count = torch.tensor(float(ids.numel()))
    parameters = list(model.parameters())

    def loss_of() -> Tensor:
        loss, _ = loss_function(model(ids), targets, count)
        result: Tensor = loss
        return result

    if place.world_size == 1:
        return training(loss_of, parameters), CPU
    optimizer = fused_adamw(parameters)

    def step() -> float:
        loss = loss_of()
        loss.backward()
        titan.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step, CPU
