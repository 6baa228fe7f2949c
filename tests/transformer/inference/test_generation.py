"""A text is the same alone, among others, in pieces and in every layout, and nothing is kept when it is over."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from scaling.core import ConfigError, DataRefusedError, KeyValueCache, KeyValueCaches
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.inference.generation.completion import Completion
from scaling.transformer.inference.generation.plan import attention_layers
from scaling.transformer.inference.generation.sampling import Sampling
from scaling.transformer.inference.module import TransformerInferenceModule
from tests.distributed import run_distributed
from tests.reference.worlds import connected
from tests.transformer.inference.generation_models import MODELS, VOCABULARY, build, prompts, uncached

DRAWN = Sampling(temperature=1.0, top_k=20, top_p=0.95, min_p=0.01, repetition_penalty=1.1)
NEW = 32
SHORT = 10
"""New tokens where several processes share two cores."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost such small products more than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tokens_of(completions: list[Completion]) -> list[list[int]]:
    return [completion.completion_tokens for completion in completions]


@pytest.mark.parametrize("name", MODELS)
def test_a_text_is_the_same_cached_or_not_alone_or_among_others_whole_or_in_chunks(name: str) -> None:
    model = build(name)
    expected = [uncached(model, prompt, NEW) for prompt in prompts()]
    assert len({token for text in expected for token in text}) > 8
    assert [model.generate(prompt, max_tokens=NEW).completion_tokens for prompt in prompts()] == expected
    for chunk in (1024, 64, 7, 1):
        assert tokens_of(model.generate(prompts(), max_tokens=NEW, chunk_size=chunk)) == expected, chunk


def test_a_row_that_starts_in_a_freed_place_gives_the_same_text() -> None:
    for name in MODELS:
        model = build(name)
        expected = tokens_of(model.generate(prompts(), max_tokens=NEW))
        ends = [expected[0][4], expected[3][9]]  # so that rows end at different times
        ended = [text[: next((n + 1 for n, token in enumerate(text) if token in ends), NEW)] for text in expected]
        assert len({len(text) for text in ended}) > 2
        everything = model.plan(prompts(), max_tokens=NEW)
        layers = attention_layers(plan_of(model.config))
        limit = everything.cache_bytes(layers, 1, 8)
        assert everything.bytes == limit
        for share in (1.0, 0.6, 0.3):
            asked: dict[str, Any] = {"max_tokens": NEW, "max_cache_bytes": int(share * limit), "chunk_size": 9}
            plan = model.plan(prompts(), **asked)
            assert plan.bytes == plan.cache_bytes(layers, 1, 8) <= share * limit
            assert sum(pool.rows for pool in plan.pools) <= max(2, 8 * share + 1)
            assert tokens_of(model.generate(prompts(), stop_tokens=ends, **asked)) == ended, (name, share)


def texts_as_rank(rank: int, world_size: int, pipe: int, model: int) -> dict[str, Any]:
    """Return all that a layout generates, and what its caches take, on this rank."""
    found: dict[str, Any] = {}
    with connected(pipe=pipe, model=model) as topology:
        for name in MODELS:
            loaded = build(name, topology)
            with counted_caches() as counted:
                drawn = loaded.generate(prompts(), max_tokens=SHORT, sampling=DRAWN, seed=5, chunk_size=30)
            logprobs = loaded.generate(prompts(3, 8), max_tokens=4, log_probabilities=3, samples=2, seed=1)
            found[name] = {
                "greedy": tokens_of(loaded.generate(prompts(), max_tokens=SHORT)),
                "alone": loaded.generate(prompts()[3], max_tokens=SHORT).completion_tokens,
                "drawn": tokens_of(drawn),
                "numbers": [(one.log_probabilities, one.best) for both in logprobs for one in both],
                "bytes": (counted, planned_bytes(loaded, prompts(), SHORT, 30)),
            }
    return found


class counted_caches:
    """Sums the bytes that caches allocate meanwhile."""

    def __enter__(self) -> list[int]:
        self._patch = pytest.MonkeyPatch()
        found: list[int] = []
        init = KeyValueCache.__init__

        def counting(cache: KeyValueCache, *args: Any, **kwargs: Any) -> None:
            init(cache, *args, **kwargs)
            found.append(cache.nbytes)

        self._patch.setattr(KeyValueCache, "__init__", counting)
        return found

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


def planned_bytes(model: TransformerInferenceModule, texts: list[list[int]], new: int, chunk: int) -> int:
    plan = model.plan(texts, max_tokens=new, chunk_size=chunk)
    here = model.topology.coordinate
    layers = attention_layers(plan_of(model.config), model.module.partition[here.pipe])
    return plan.cache_bytes(layers, model.topology.layout.model, 8)


@pytest.mark.parametrize(
    ("pipe", "model"),
    [(1, 2), (2, 1), (2, 2), *(pytest.param(*ranks, marks=pytest.mark.slow) for ranks in ((4, 1), (1, 4), (3, 2)))],
)
def test_every_layout_generates_the_same_texts_in_the_bytes_that_were_planned(pipe: int, model: int) -> None:
    ranks = run_distributed(texts_as_rank, pipe * model, pipe, model)
    for name in MODELS:
        alone = build(name)
        expected = tokens_of(alone.generate(prompts(), max_tokens=SHORT))
        drawn = tokens_of(alone.generate(prompts(), max_tokens=SHORT, sampling=DRAWN, seed=5))
        numbers = [
            (one.log_probabilities, [token for place in one.best or [] for token, _ in place])
            for both in alone.generate(prompts(3, 8), max_tokens=4, log_probabilities=3, samples=2, seed=1)
            for one in both
        ]
        for found in (rank[name] for rank in ranks):
            assert found["greedy"] == expected
            assert found["alone"] == expected[3]
            assert found["drawn"] == drawn
            counted, planned = found["bytes"]
            assert sum(counted) == planned
            for (mine, best), (theirs, others) in zip(found["numbers"], numbers, strict=True):
                assert mine == pytest.approx(theirs, abs=1e-10)
                assert [token for place in best for token, _ in place] == others


def test_one_seed_gives_one_text_whatever_else_is_generated() -> None:
    model = build("grouped")
    sampling = Sampling(temperature=1.2)
    alone = [model.generate(prompt, max_tokens=12, sampling=sampling, seed=7).completion_tokens for prompt in prompts()]
    assert tokens_of(model.generate(prompts(), max_tokens=12, sampling=sampling, seed=7)) == alone
    one = model.generate(prompts()[2], max_tokens=12, sampling=sampling, seed=8).completion_tokens
    assert one != alone[2]
    seeds = [7, 7, 8, 7, 7, 7, 7, 7]
    assert tokens_of(model.generate(prompts(), max_tokens=12, sampling=sampling, seed=seeds))[2] == one
    going_on = model.generate(prompts()[2] + one[:5], max_tokens=7, sampling=sampling, seed=8).completion_tokens
    assert going_on == one[5:]  # after a restart


def test_samples_come_from_one_reading_of_the_prompt() -> None:
    for name in MODELS:
        model = build(name)
        asked: dict[str, Any] = {"max_tokens": 10, "sampling": Sampling(temperature=1.5), "seed": 2, "chunk_size": 5}
        several = model.generate(prompts(), samples=4, **asked)
        assert all(len({tuple(one.completion_tokens) for one in of_prompt}) > 1 for of_prompt in several)
        first = [of_prompt[0] for of_prompt in several]
        assert first == model.generate(prompts(), **asked)
        read: list[int] = []
        _, embedding = next(model.module.layers())
        hook = embedding.register_forward_pre_hook(
            lambda _, inputs, read=read: read.append(inputs[0].token_ids.numel())
        )
        assert model.generate(prompts(), samples=4, **asked) == several
        hook.remove()
        assert sum(read) == sum(map(len, prompts())) + 8 * 4 * 9  # the last token of a text is not read


def test_log_probabilities_are_those_of_the_text() -> None:
    model = build("windows")
    sampling = Sampling(temperature=0.7, top_k=5, repetition_penalty=1.3)
    found = model.generate(prompts(), max_tokens=9, sampling=sampling, seed=1, log_probabilities=4)
    likelihoods = model.log_likelihood(prompts(), [completion.completion_tokens for completion in found])
    for completion, likelihood in zip(found, likelihoods, strict=True):
        assert completion.log_probabilities is not None
        assert completion.best is not None
        torch.testing.assert_close(
            torch.tensor(completion.log_probabilities, dtype=torch.float64), likelihood.log_probabilities
        )
        assert [len(best) for best in completion.best] == [4] * 9
        assert all(best == sorted(best, key=lambda pair: -pair[1]) for best in completion.best)


def test_streams_yield_what_generate_returns_and_rows_by_number() -> None:
    model = build("grouped")
    texts: list[list[int]] = [[] for _ in range(16)]
    for row, token in model.stream(prompts(), samples=2, max_tokens=6, sampling=Sampling(temperature=1.0), seed=3):
        texts[row].append(token)
    every = model.generate(prompts(), samples=2, max_tokens=6, sampling=Sampling(temperature=1.0), seed=3)
    assert texts == [one.completion_tokens for both in every for one in both]


def living(references: list[weakref.ref[torch.Tensor]]) -> int:
    gc.collect()
    return sum(reference() is not None for reference in references)


def test_nothing_is_kept_when_a_generation_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("windows")
    references: list[weakref.ref[torch.Tensor]] = []
    add = KeyValueCaches.add

    def noting(caches: KeyValueCaches, attention: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        add(caches, attention, *args, **kwargs)
        references.extend(weakref.ref(keys) for keys in caches[attention]._keys_RKPD)

    monkeypatch.setattr(KeyValueCaches, "add", noting)
    model.generate(prompts(), max_tokens=3)
    assert references
    assert living(references) == 0, "after a return"
    stream = model.stream(prompts(), max_tokens=9)
    list(itertools.islice(stream, 5))
    assert living(references) > 0
    del stream
    assert living(references) == 0, "after an abandoned stream"
    never = model.stream(prompts(), max_tokens=9)
    del never
    assert living(references) == 0, "after a stream that was never asked"
    for error in (KeyboardInterrupt(), RuntimeError("broken")):
        with monkeypatch.context() as patch:
            patch.setattr("scaling.transformer.inference.generation.running.GenerationWork.choose", raising(error))
            with pytest.raises(type(error)) as raised:
                model.generate(prompts(), max_tokens=3)
        assert living(references) == 0, f"after {raised.value!r}, while it is looked at"
    assert model.generate(prompts()[0], max_tokens=3).completion_tokens


def raising(error: BaseException) -> Any:
    def fail(*_: Any) -> None:
        raise error

    return fail


def test_logits_that_are_no_numbers_are_named() -> None:
    model = build("grouped")
    with torch.no_grad():
        model.module.get_parameter("stages.0.layers.2.input_layernorm.weight").fill_(torch.nan)
    with pytest.raises(DataRefusedError, match="the logits behind token 17 of text 0 are not finite"):
        model.generate(prompts()[3:4] * 4, max_tokens=3)[0]


def test_bad_requests_get_a_message() -> None:
    model = build("grouped")
    calls: list[tuple[dict[str, Any], str]] = [
        ({"prompts": [[1], [61]]}, r"prompts\[1\] has token 61, outside the vocabulary of 61"),
        ({"prompts": [1] * 49}, r"the prompt has 49 tokens, but the model was trained on 48"),
        ({"prompts": [1], "stop": [""]}, "a stop text is empty"),
        ({"prompts": [1], "samples": 0}, r"samples \(0\) must be at least 1"),
        ({"prompts": [1], "chunk_size": 0}, r"chunk_size \(0\) must be at least 1"),
        ({"prompts": [1], "max_cache_bytes": 100}, r"the longest request \(128 tokens\) take 131072 bytes"),
        ({"prompts": [1], "max_tokens": 2, "min_tokens": 3}, r"min_tokens \(3\) is above max_tokens \(2\)"),
        ({"prompts": [[1], [2]], "seed": [1]}, "there are 1 seeds for 2 prompts"),
        ({"prompts": [1], "log_probabilities": -1}, r"log_probabilities \(-1\)"),
    ]
    for asked, message in calls:
        with pytest.raises(ConfigError, match=message):
            model.generate(**asked)
    assert model.generate([1], max_tokens=0).completion_tokens == []
    assert model.generate([[1], [2]], max_tokens=0, samples=2)[1][1].completion_tokens == []


def test_no_text_ends_before_its_minimum() -> None:
    model = build("grouped")
    first = model.generate([1, 2], max_tokens=1).completion_tokens
    assert model.generate([1, 2], max_tokens=8, stop_tokens=first).completion_tokens == first
    longer = model.generate([1, 2], max_tokens=8, min_tokens=5, stop_tokens=first).completion_tokens
    assert len(longer) >= 5
    assert not set(first) & set(longer[:5])
    assert len(model.generate([1, 2], max_tokens=8, stop_tokens=[]).completion_tokens) == 8
    assert max(longer) < VOCABULARY


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grouped", "windows"])
def test_prompts_of_very_different_lengths_are_continued_as_one_by_one(name: str) -> None:
    model = build(name, sequence_length=2048)
    generator = torch.Generator().manual_seed(5)
    lengths = [1, 2000, *torch.randint(1, 2001, (62,), generator=generator).tolist()]
    texts = prompts(*lengths)
    plan = model.plan(texts, max_tokens=8)
    layers = attention_layers(plan_of(model.config))
    alone = sum(model.plan(text, max_tokens=8).cache_bytes(layers, 1, 8) for text in texts)
    assert alone <= plan.cache_bytes(layers, 1, 8) <= 1.25 * alone
    expected = [model.generate(text, max_tokens=8).completion_tokens for text in texts]
    assert tokens_of(model.generate(texts, max_tokens=8)) == expected


def test_a_token_comes_before_the_next_one_is_computed() -> None:
    model = build("grouped")
    read: list[int] = []
    _, embedding = next(model.module.layers())
    embedding.register_forward_pre_hook(lambda _, x: read.append(x[0].token_ids.numel()))
    stream = model.stream(prompts()[2], max_tokens=4)
    for number in range(4):
        next(stream)
        assert len(read) == number + 1
    assert next(stream, None) is None
    assert len(read) == 4
