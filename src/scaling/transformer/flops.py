"""Floating-point operations of a training step, by one formula."""

from __future__ import annotations

from scaling.transformer.config.architecture import ArchitectureConfig
from scaling.transformer.config.model_plan import base_plan_of, plan_of


def flops_per_token(architecture: ArchitectureConfig) -> int:
    """Return the operations of the forward and backward pass per token, without recomputation.

    Counts 6 per matrix weight, and 12 * layers * hidden size * sequence length for the attention scores (Chowdhery et
    al., arXiv:2204.02311, appendix B). By convention the latter includes the half that a causal kernel skips. A weight
    of a base that fine-tuning methods leave unchanged counts 4, since it has no gradient.
    """
    whole = plan_of(architecture).multiply_adds
    if not architecture.has_methods:
        return 6 * sum(whole)
    return 6 * sum(whole) - 2 * base_plan_of(architecture).multiply_adds.matrices
