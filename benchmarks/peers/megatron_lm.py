"""Megatron-core: its GPTModel with the layers that need no Transformer Engine, made to run on a CPU.

It is written for CUDA and asks for the current device and for `device="cuda"` in many places; here both mean the CPU.
Its norm without Transformer Engine or Apex refuses sequence parallelism, which is therefore not compared. Its
optimizers check for CUDA tensors, so the step is PyTorch's fused AdamW, with gradients clipped over the ranks.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from peers.common import CPU, Job, Step, clip_across_ranks, connect, fused_adamw, tokens


def stand_in_for_cuda() -> None:
    """Let what names CUDA mean the CPU: in this process, before Megatron-core is imported."""

    def nothing(*_: Any, **__: Any) -> None:
        pass

    def on_cpu(make: Any) -> Any:
        @functools.wraps(make)
        def made(*args: Any, **named: Any) -> Any:
            if str(named.get("device", "")).startswith("cuda"):
                named["device"] = CPU
            return make(*args, **named)

        return made

    for name in ("zeros", "ones", "empty", "tensor", "arange", "full"):
        setattr(torch, name, on_cpu(getattr(torch, name)))
    torch.cuda.current_device = lambda: CPU  # type: ignore[assignment,return-value]
    torch.cuda.synchronize = nothing
    torch.cuda.get_rng_state = lambda *_, **__: torch.get_rng_state()
    torch.cuda.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    torch.cuda.manual_seed = lambda seed: torch.manual_seed(seed)  # type: ignore[assignment,return-value]
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign,assignment]


def step(place: Any, **job: Any) -> tuple[Step, torch.device]:
    stand_in_for_cuda()
    warnings.filterwarnings("ignore")
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.tensor_parallel import random as megatron_random
    from megatron.core.transformer.transformer_config import TransformerConfig

    plan = Job(**job)
    connect(place)
    tensor = place.world_size if plan.layout == "tensor" else 1
    pipe = place.world_size if plan.layout == "pipe" else 1
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=tensor, pipeline_model_parallel_size=pipe)
    megatron_random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    megatron_random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    megatron_random.model_parallel_cuda_manual_seed(1)
    config = TransformerConfig(
        num_layers=plan.layers,
        hidden_size=plan.hidden,
        ffn_hidden_size=plan.intermediate,
        num_attention_heads=plan.heads,
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipe,
        pipeline_dtype=torch.float32,
        params_dtype=torch.float32,
        use_cpu_initialization=True,
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        normalization="RMSNorm",
        layernorm_epsilon=plan.epsilon,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        bias_activation_fusion=False,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        deallocate_pipeline_outputs=True,
    )
    model: Any = GPTModel(
        config=config,
        transformer_layer_spec=get_gpt_layer_local_spec(normalization="RMSNorm"),
        vocab_size=plan.vocabulary,
        max_sequence_length=plan.sequence,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
    )
    parameters = list(model.parameters())
    if plan.layout == "data":
        model = DistributedDataParallel(config, DistributedDataParallelConfig(overlap_grad_reduce=True), model)
        config.finalize_model_grads_func = finalize_model_grads
    optimizer = fused_adamw(parameters)
    ids, targets = tokens(plan, place.world_size)
    positions = torch.arange(plan.sequence).expand_as(ids)
    mask = ~torch.ones(1, 1, plan.sequence, plan.sequence).tril().bool()
    split = [parameter for parameter in parameters if pipe > 1 or getattr(parameter, "tensor_model_parallel", False)]
    alike = [parameter for parameter in parameters if not any(parameter is other for other in split)]

    def forward(micro_batches: Iterator[None], part: Any) -> tuple[Tensor, Any]:
        next(micro_batches)
        output = part(ids, positions, mask, labels=targets)

        def reduced(losses: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            loss = losses.mean()
            return loss, {"loss": loss.detach().clone()}  # the schedule divides the loss in place

        return output, reduced

    run = get_forward_backward_func()

    def take() -> float:
        losses = run(
            forward_step_func=forward,
            data_iterator=iter([None] * plan.micro_batches),
            model=[model],
            num_microbatches=plan.micro_batches,
            seq_length=plan.sequence,
            micro_batch_size=plan.rows(place.world_size),
            forward_only=False,
        )
        if plan.layout == "data":
            for parameter in parameters:
                parameter.grad = parameter.main_grad
        if place.world_size > 1 and plan.layout != "data":
            clip_across_ranks(
                [p.grad for p in split if p.grad is not None], [p.grad for p in alike if p.grad is not None]
            )
        else:
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if plan.layout == "data":
            for parameter in parameters:
                parameter.grad = None
            model.zero_grad_buffer()
        else:
            optimizer.zero_grad()
        return float(torch.stack([each["loss"] for each in losses]).mean()) if losses else 0.0

    return take, CPU
