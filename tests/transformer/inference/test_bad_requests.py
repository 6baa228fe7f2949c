"""What cannot be is refused with one message, alike on all ranks, and nothing that was asked is passed over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from scaling.core import ConfigError, Topology
from scaling.transformer.inference.generation.sampling import Sampling
from tests.distributed import run_distributed
from tests.reference.worlds import connected
from tests.transformer.inference.generation_models import VOCABULARY, build

REQUESTS: list[tuple[dict[str, Any], str]] = [
    ({"prompts": []}, "the prompt is empty, and this model has no token that begins a text"),
    ({"prompts": [[1], []]}, r"prompts\[1\] is empty"),
    ({"prompts": "a"}, "no tokenizer beside it"),
    ({"prompts": [None]}, r"prompts\[0\] is None; give token ids"),
    ({"prompts": [[2], 1]}, r"prompts\[1\] is 1; give token ids"),
    ({"prompts": [1, [2]]}, r"the prompt has \[2\] among its token ids"),
    ({"prompts": {1: 2}}, "prompts is of type dict"),
    ({"prompts": [1], "max_new_tokens": 3}, "there is no option max_new_tokens; there are max_tokens, "),
    ({"prompts": [1], "max_tokens": 1.5}, r"max_tokens \(1.5\) must be a whole number"),
    ({"prompts": [1], "max_tokens": "3"}, r"max_tokens \('3'\) must be a whole number"),
    ({"prompts": [1], "max_tokens": -1}, r"max_tokens \(-1\) must be at least 0"),
    ({"prompts": [1], "min_tokens": 0.5}, r"min_tokens \(0.5\) must be a whole number"),
    ({"prompts": [1], "samples": 1.5}, r"samples \(1.5\) must be a whole number"),
    ({"prompts": [1], "log_probabilities": 1.5}, r"log_probabilities \(1.5\) must be a whole number"),
    ({"prompts": [1], "max_cache_bytes": 1e6}, r"max_cache_bytes \(1000000.0\) must be a whole number"),
    ({"prompts": [1], "seed": 1.5}, r"seed \(1.5\) must be a whole number"),
    ({"prompts": [1], "seed": [None]}, r"seed \(None\) must be a whole number"),
    ({"prompts": [1], "seed": 2**70}, r"must be at least -2\^63 and below 2\^64"),
    ({"prompts": [1], "stop": "end"}, "no tokenizer beside it, so no text can be found to stop at"),
    ({"prompts": [1], "stop": ""}, "a stop text is empty"),
    ({"prompts": [1], "stop": [3]}, "a stop text is 3; give text, and ids of tokens as stop_tokens"),
    ({"prompts": [1], "stop": 3}, "stop is 3; give a text or a list of texts"),
    ({"prompts": [1], "stop_tokens": 5}, "stop_tokens is 5; give token ids"),
    ({"prompts": [1], "stop_tokens": [2, VOCABULARY]}, "stop_tokens has token 61, outside the vocabulary of 61"),
    ({"prompts": [1], "stop_tokens": [-1]}, "stop_tokens has token -1, outside the vocabulary of 61"),
    ({"prompts": [1], "sampling": {"temperature": 1}}, "must be a Sampling"),
    ({"prompts": [1], "adapter": "x"}, r"adapter \(x\) is not loaded"),
    ({"prompts": [1] * 49}, "the prompt has 49 tokens, but the model was trained on 48"),
]


def messages(topology: Topology | None) -> list[str]:
    model, found = build("grouped", topology), []
    for asked, _ in REQUESTS:
        try:
            model.generate(**{"max_tokens": 2, **asked})
            found.append("nothing is wrong")
        except ConfigError as error:
            found.append(str(error))
    assert model.generate([1], max_tokens=2).finish_reason == "length"  # and nothing is left of what was refused
    return found


def messages_on_rank(rank: int, world_size: int) -> list[str]:
    with connected(pipe=world_size) as topology:
        return messages(topology)


def test_a_request_that_cannot_be_gets_one_message_on_all_ranks() -> None:
    expected = messages(None)
    for (asked, message), found in zip(REQUESTS, expected, strict=True):
        with pytest.raises(ConfigError, match=message):
            raise ConfigError(found)
        assert len(found.splitlines()) == 1, asked
    assert run_distributed(messages_on_rank, 2) == [expected, expected]


def test_scores_are_of_token_ids() -> None:
    model = build("grouped")
    calls: list[tuple[Callable[[Any], Any], str]] = [
        (lambda m: m.logits([[1, 2]]), "input_ids is of type list"),
        (lambda m: m.logits("ab"), "input_ids is of type str"),
        (lambda m: m.logits(torch.tensor([1, 2])), r"input_ids has shape \[2\]"),
        (lambda m: m.logits(torch.tensor([[1.0]])), "torch.float32; give token ids"),
        (lambda m: m.logits(torch.tensor([[VOCABULARY]])), "outside the vocabulary of 61"),
        (lambda m: m.hidden_states([[1]], [1]), "input_ids is of type list"),
        (lambda m: m.log_likelihood([[1, 2]]), "give a continuation for each context"),
        (lambda m: m.log_likelihood(["a"], ["b"]), r"contexts\[0\] is 'a'; give token ids"),
        (lambda m: m.log_likelihood([1], [2]), r"contexts\[0\] is 1; give token ids"),
        (lambda m: m.log_likelihood([[1]], [[1.5]]), r"continuations\[0\] has 1.5 among its token ids"),
        (lambda m: m.log_likelihood([[1], [2]], [[3]]), "2 contexts and 1 continuations"),
    ]
    for call, message in calls:
        with pytest.raises(ConfigError, match=message):
            call(model)
    rows: Any = torch.tensor([[1, 2]])
    assert model.log_likelihood(rows, [[3]])[0].total == model.log_likelihood([[1, 2]], [[3]])[0].total


def test_numbers_at_the_border_have_the_right_answer() -> None:
    model = build("grouped")
    greedy = model.generate([1], max_tokens=3).completion_tokens
    for sampling in (Sampling(temperature=1, min_p=1.0), Sampling(temperature=1, top_k=np.int64(1))):
        assert model.generate([1], max_tokens=3, sampling=sampling).completion_tokens == greedy
    options: list[dict[str, Any]] = [{"top_k": 10**6}, {"top_p": 1}, {}]
    drawn = [model.generate([1], max_tokens=3, sampling=Sampling(temperature=1, **one), seed=4) for one in options]
    assert drawn[0] == drawn[1] == drawn[2]
    best = model.generate(torch.tensor([1]), max_tokens=np.int64(1), log_probabilities=1000).best  # type: ignore[call-overload]
    assert len(best[0]) == VOCABULARY
    refused: list[tuple[str, Any]] = [("top_k", 2.5), ("top_k", True), ("temperature", "1"), ("top_p", "x")]
    for name, value in refused:
        with pytest.raises(ConfigError, match=rf"{name} \({value!r}\) must be a (whole )?number"):
            Sampling(**{name: value})
