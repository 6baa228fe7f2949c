"""Small token data sets, and configurations that name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from scaling.core.data.memory_map_builder import MemoryMapDatasetBuilder
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.tokenizer import Tokenizer


def make_data(
    prefix: Path, *, documents: int = 40, largest: int = 99, tokenizer: Path | None = None, end: int | None = None
) -> Path:
    random = np.random.default_rng(documents)
    digest = None if tokenizer is None else Tokenizer.from_file(tokenizer).sha256
    with MemoryMapDatasetBuilder(prefix, np.uint16, tokenizer_sha256=digest, eod_token_id=end) as builder:
        for _ in range(documents):
            builder.add(np.append(random.integers(1, largest + 1, size=random.integers(4, 30)), end or 0))
    return prefix


def config(architecture: dict[str, Any] | None = None, **data: Any) -> TransformerConfig:
    return TransformerConfig.from_dict(
        {
            "transformer_architecture": {"sequence_length": 8, "vocab_size": 100, **(architecture or {})},
            "data": {key: str(value) if isinstance(value, Path) else value for key, value in data.items()},
        }
    )
