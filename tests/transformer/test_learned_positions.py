"""A model scores and continues no text that is longer than its table of learned positions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from scaling.core import ConfigError
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.inference.module import TransformerInferenceModule


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.generate(7, input_tokens=[1, 2, 3]), "3 tokens and max_tokens is 7.* 8 .*at most 6"),
        (lambda model: model.generate(1, input_tokens=[1] * 9), "9 tokens and max_tokens is 1.* 8 .*shorten it"),
        (lambda model: list(model.stream([1, 2, 3])), "3 tokens and max_tokens is 128.* 8 .*at most 6"),
        (lambda model: model.logits(torch.ones(1, 9, dtype=torch.int64)), "the text has 9 tokens, .* 8 positions"),
    ],
)
def test_learned_positions_are_not_exceeded(call: Callable[[TransformerInferenceModule], object], message: str) -> None:
    learned = {"vocab_size": 7, "hidden_size": 16, "num_layers": 1, "sequence_length": 8, "absolute_positions": 8}
    model = TransformerInferenceModule(TransformerArchitectureConfig.from_dict(learned))
    assert len(model.generate(6, input_tokens=[1, 2, 3], stop_tokens=[]).completion_tokens) == 6
    assert model.log_likelihood(torch.ones(1, 9, dtype=torch.int64)).shape == (1, 8)
    with pytest.raises(ConfigError, match=message):
        call(model)
