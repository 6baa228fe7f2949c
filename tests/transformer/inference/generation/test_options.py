"""What a caller asks for wins over the model's configuration, and what cannot be is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from scaling.core import ConfigError
from scaling.transformer.inference.generation.defaults import GenerationDefaults
from scaling.transformer.inference.generation.options import Asked, Options, is_one, options_of, seeds_of
from scaling.transformer.inference.generation.sampling import Sampling

MODEL = GenerationDefaults(sampling=Sampling(temperature=0.6), max_tokens=20, min_tokens=4)


def asked(defaults: GenerationDefaults = MODEL, prompts: int = 1, **options: Any) -> Options:
    given: Asked = options  # type: ignore[assignment]
    return options_of(given, defaults, ends=frozenset([2]), vocab_size=8, prompts=prompts, samples=1)


def test_what_is_left_out_is_the_models() -> None:
    options = asked()
    assert (options.max_tokens, options.min_tokens, options.sampling) == (20, 4, Sampling(temperature=0.6))
    assert options.ends == {2}
    assert asked(GenerationDefaults()).max_tokens == 128
    options = asked(max_tokens=3, min_tokens=None, sampling=Sampling(), stop_tokens=[], stop=None, chunk_size=None)
    assert (options.max_tokens, options.min_tokens, options.sampling) == (3, 3, Sampling())
    assert (options.stop, options.chunk_size) == ((), 1024)
    assert options.ends == frozenset()


def test_prompts_have_the_seed_that_is_given_or_others_each_time() -> None:
    assert seeds_of(7, 3, fresh=1) == (7, 7, 7)
    assert seeds_of([7, 8], 2, fresh=1) == (7, 8)
    assert len(set(seeds_of(None, 3, fresh=1))) == 3
    assert asked().seeds != asked().seeds
    options = Options(max_tokens=1, seeds=(4, 5), samples=2)
    assert options.seed_of(1, 0) == 5
    assert len({options.seed_of(prompt, sample) for prompt in (0, 1) for sample in (0, 1)}) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": -1}, r"max_tokens \(-1\) must be at least 0"),
        ({"min_tokens": -1}, r"min_tokens \(-1\) must be at least 0"),
        ({"max_tokens": 3, "min_tokens": 4}, r"min_tokens \(4\) is above max_tokens \(3\)"),
        ({"log_probabilities": -1}, r"log_probabilities \(-1\) must be at least 0"),
        ({"max_cache_bytes": 0}, r"max_cache_bytes \(0\) must be at least 1"),
        ({"chunk_size": 0}, r"chunk_size \(0\) must be at least 1"),
        ({"stop": ["a", ""]}, "a stop text is empty"),
        ({"seed": 2**64}, "must be at least -2\\^63 and below 2\\^64"),
        ({"seed": [1, 2]}, "there are 2 seeds for 1 prompts"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        asked(**options)


def test_one_prompt_is_told_from_several() -> None:
    one: list[Any] = ["text", "", [1, 2], [], (3,), np.array([1, 2]), torch.tensor([1, 2]), [np.int64(3)]]
    several: list[Any] = [["text"], [[1]], [[]], [np.array([1])], [torch.tensor([1])], torch.ones(2, 2).long()]
    assert [is_one(prompts) for prompts in one] == [True] * len(one)
    assert [is_one(prompts) for prompts in several] == [False] * len(several)
