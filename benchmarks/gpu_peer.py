"""A step of the same model by `transformers`, compiled: its Llama, AdamW of torch, weights in the model's precision.

With weights in bfloat16 it keeps no float32 masters, as this library does: less memory and less work for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scaling.core import ActivationCheckpointingType
from scaling.transformer import TransformerConfig


def transformers_step(
    config: TransformerConfig, batches: Sequence[tuple[Tensor, Tensor]], *, compiler: str
) -> Callable[[], Tensor]:
    """Return a function that takes a step and returns its loss on the device; `batches` are used in turn."""
    from transformers import LlamaConfig, LlamaForCausalLM

    architecture, topology = config.transformer_architecture, config.topology
    device = batches[0][0].device
    torch.manual_seed(1)
    with torch.device(device):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=architecture.vocab_size,
                hidden_size=architecture.hidden_size,
                intermediate_size=architecture.mlp_width,
                num_hidden_layers=architecture.num_layers,
                num_attention_heads=architecture.num_attention_heads,
                num_key_value_heads=architecture.attention_num_kv_heads,
                max_position_embeddings=architecture.sequence_length,
                rope_parameters={"rope_type": "default", "rope_theta": architecture.rotary_embedding_base},
                tie_word_embeddings=architecture.weight_tying,
                attn_implementation="sdpa",
                use_cache=False,
            )
        ).to(architecture.precision.dtype)
    model.train()
    if topology.activation_checkpointing_type is not ActivationCheckpointingType.DISABLED:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    compiled = torch.compile(model, backend=compiler)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), fused=True)
    parts, used = topology.gradient_accumulation_steps, 0

    def step() -> Tensor:
        nonlocal used
        total = torch.zeros((), device=device)
        for _ in range(parts):
            ids, targets = batches[used % len(batches)]
            used += 1
            # Its loss shifts the labels by itself, unless it is given those that are shifted.
            loss = compiled(input_ids=ids, shift_labels=targets, labels=targets).loss
            (loss / parts).backward()
            total += loss.detach() / parts
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step
