"""Checks between the model and records: a soft prompt must fit them."""

from __future__ import annotations

from collections.abc import Iterator

from scaling.core import Problem
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.data import DataConfig


def soft_prompt_has_its_places(
    transformer_architecture: TransformerArchitectureConfig, data: DataConfig
) -> Iterator[Problem]:
    """Check that the data are records where there is a soft prompt, and that it leaves room for them."""
    prompt, length = transformer_architecture.softprompt_config, transformer_architecture.sequence_length
    if prompt is None:
        return
    if prompt.n_tokens >= length:
        yield Problem(
            "transformer_architecture.softprompt_config.n_tokens",
            f"is {prompt.n_tokens}, but a sequence has {length} tokens (sequence_length), so that no text fits behind "
            f"the prompt; use at most {length - 1}, or longer sequences",
        )
    if data.records is None and (data.data_prefixes or data.corpus is not None):
        yield Problem(
            "transformer_architecture.softprompt_config",
            "stands in front of every record, but the data are a stream of texts, which has none; set "
            "data.record_format to auto and name records, or remove it",
        )
