"""What each process of a layout generates with imported models; no `transformers`, which takes seconds to import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from scaling.transformer.inference.generation.completion import Completion
from scaling.transformer.inference.module import TransformerInferenceModule
from tests.reference.worlds import connected

LENGTHS: Final = (1, 40, 5, 17, 3, 22, 33, 9)
"""Of prompts."""
NEW: Final = 32


def tokens_of(completions: Sequence[Completion]) -> list[list[int]]:
    """Return the new tokens of texts."""
    return [completion.completion_tokens for completion in completions]


def texts_as_rank(
    rank: int, world_size: int, folders: Sequence[Path], prompts: Sequence[Sequence[int]], pipe: int, model: int
) -> list[tuple[list[list[int]], list[Completion]]]:
    """Return, for each checkpoint, the most likely texts, and all log-probabilities of some tokens in float64."""
    found = []
    with connected(pipe=pipe, model=model) as topology:
        for folder in folders:
            loaded = TransformerInferenceModule.from_checkpoint(folder, topology=topology)
            texts = tokens_of(loaded.generate(prompts, max_tokens=NEW, stop_tokens=()))
            for prompt, text in list(zip(prompts, texts, strict=True))[3:5]:
                assert loaded.generate(prompt, max_tokens=NEW, stop_tokens=()).completion_tokens == text
            exact = TransformerInferenceModule.from_checkpoint(folder, topology=topology, precision="float64")
            size = exact.config.vocab_size
            found.append((texts, exact.generate(prompts, max_tokens=3, log_probabilities=size)))
        assert torch.get_num_threads() == 1
    return found
