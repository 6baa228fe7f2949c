"""Floating-point operations of a training step, by one formula."""

from __future__ import annotations

from scaling.transformer.config.architecture import ArchitectureConfig
from scaling.transformer.config.model_plan import base_plan_of, plan_of


def flops_per_token(architecture: ArchitectureConfig) -> int:
    """Return the operations of forward and backward per token, recomputation not counted.

    6 per matrix weight, and 12 * layers * hidden size * sequence length for the attention scores (Chowdhery et al.,
    arXiv:2204.02311, appendix B), although a causal kernel skips half of the latter: the convention of the field. 4 per
    weight of a base that methods of fine-tuning leave as it is: it has no gradient of its own.
    """
    whole = plan_of(architecture).multiply_adds
    if not architecture.has_methods:
        return 6 * sum(whole)
    return 6 * sum(whole) - 2 * base_plan_of(architecture).multiply_adds.matrices
