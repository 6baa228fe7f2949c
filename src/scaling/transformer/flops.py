"""Floating-point operations of a training step, by one formula."""

from __future__ import annotations

from scaling.transformer.config.architecture import MLPType, TransformerArchitectureConfig


def matrix_parameters(config: TransformerArchitectureConfig) -> int:
    """Return the number of weights that take part in a matrix product for each token (embeddings are looked up)."""
    hidden = config.hidden_size
    attention = 2 * hidden * hidden + 2 * hidden * config.num_kv_heads * config.head_size
    mlp = (3 if config.mlp_type is MLPType.SWIGLU else 2) * hidden * config.mlp_size
    head = hidden * config.vocab_size if config.lm_head else 0
    return config.num_layers * (attention + mlp) + head


def flops_per_token(config: TransformerArchitectureConfig) -> int:
    """Return the operations of forward and backward per token, recomputation not counted.

    6 per matrix weight, and 12 * layers * hidden size * sequence length for the attention scores (Chowdhery et al.,
    arXiv:2204.02311, appendix B), although a causal kernel skips half of the latter: the convention of the field.
    """
    return 6 * matrix_parameters(config) + 12 * config.num_layers * config.hidden_size * config.sequence_length
