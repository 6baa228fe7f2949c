"""What a caller asks of the sampling wins over what the model's files say."""

from __future__ import annotations

import pytest

from scaling.core import ConfigError
from scaling.transformer.inference.generation.sampling import Sampling
from scaling.transformer.inference.generation.sampling_options import SamplingOptions


def test_what_a_caller_asks_for_wins() -> None:
    drawn = Sampling(temperature=0.6, top_k=20, top_p=0.9, min_p=0.1, repetition_penalty=1.1)
    assert SamplingOptions().over(drawn) == drawn
    assert SamplingOptions(temperature=0.0).over(drawn) == Sampling(
        temperature=0.0, top_k=20, top_p=0.9, min_p=0.1, repetition_penalty=1.1
    )
    off = SamplingOptions(top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
    assert off.over(drawn) == Sampling(temperature=0.6, top_p=1.0)
    given = SamplingOptions(top_k=3, top_p=0.5, min_p=0.2, repetition_penalty=2.0)
    assert given.over(Sampling()) == Sampling(top_k=3, top_p=0.5, min_p=0.2, repetition_penalty=2.0)
    for wrong in (SamplingOptions(top_k=-1), SamplingOptions(min_p=-0.5), SamplingOptions(top_p=2.0)):
        with pytest.raises(ConfigError, match=r"must be"):
            wrong.over(drawn)
