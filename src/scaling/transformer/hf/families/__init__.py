"""The families of Hugging Face models, the simplest first."""

from __future__ import annotations

from typing import Final

from scaling.transformer.hf.families.gemma import GEMMA2, GEMMA3
from scaling.transformer.hf.families.gpt import GPT2, GPT_NEOX
from scaling.transformer.hf.families.llama import GRANITE, LLAMA, MINISTRAL, MISTRAL, PHI3, QWEN2, QWEN3, SMOLLM3
from scaling.transformer.hf.families.olmo import OLMO, OLMO2, OLMO3
from scaling.transformer.hf.family import Family

FAMILIES: Final[tuple[Family, ...]] = (
    LLAMA,
    GPT_NEOX,
    GPT2,
    QWEN2,
    QWEN3,
    MISTRAL,
    SMOLLM3,
    MINISTRAL,
    GRANITE,
    OLMO,
    OLMO2,
    OLMO3,
    GEMMA2,
    GEMMA3,
    PHI3,
)
"""All families, in the order in which an architecture is tried on them."""
