"""Commands choose tokens as they are asked to, else as the model's configuration draws them, else at their own."""

from __future__ import annotations

from scaling.cli.sampling_options import sampling_of
from scaling.transformer.inference.generation.sampling import Sampling
from scaling.transformer.inference.generation.sampling_options import SamplingOptions


def test_the_models_configuration_comes_before_the_default_of_the_command() -> None:
    drawn = Sampling(temperature=0.3, top_p=0.9)
    assert sampling_of(SamplingOptions(), Sampling()) == Sampling(temperature=0.8)
    greedy = Sampling(repetition_penalty=1.2)
    assert sampling_of(SamplingOptions(), greedy) == Sampling(temperature=0.8, repetition_penalty=1.2)
    assert sampling_of(SamplingOptions(), drawn) == drawn
    assert sampling_of(SamplingOptions(temperature=0.0, top_p=1.0), drawn) == Sampling(top_p=1.0)
