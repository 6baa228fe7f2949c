"""Requests of lm-eval get the answers of its own model class for Hugging Face models, whatever asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing

from scaling.core import ConfigError
from scaling.transformer import TransformerInferenceModule
from scaling.transformer.data.tokenizer import Tokenizer
from scaling.transformer.evaluation.harness import (
    HarnessAnswers,
    rolling_windows,
    sampling_of_task,
    shortened,
    until_first,
)
from scaling.transformer.hf.importer import import_model
from scaling.transformer.inference.generation.sampling import Sampling
from tests.transformer.hf.by_hand import END, END_OF_TURN, write_model

LENGTH = 48


class Answers(HarnessAnswers):
    """With a note of what was answered, as lm-eval keeps one for its cache."""

    def __init__(self, model: TransformerInferenceModule) -> None:
        super().__init__(model)
        self.noted: list[tuple[str, Any, Any]] = []
        self.cache_hook = SimpleNamespace(add_partial=lambda *answer: self.noted.append(answer))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TransformerInferenceModule:
    folder = tmp_path_factory.mktemp("model")
    source = write_model(folder / "hf", config={"max_position_embeddings": LENGTH})
    import_model(source, folder / "checkpoint")
    return TransformerInferenceModule.from_checkpoint(folder / "checkpoint", precision="float64")


def asked(*requests: Any) -> list[Any]:
    return [SimpleNamespace(args=request) for request in requests]


@given(st.integers(0, 60), st.integers(1, 20))
def test_windows_score_every_token_once_behind_as_much_as_fits(count: int, length: int) -> None:
    windows = list(rolling_windows(range(count), -1, length))
    assert [token for _, new in windows for token in new] == list(range(count))
    everything = [-1, *range(count)]
    for number, (context, new) in enumerate(windows):
        assert len(new) <= length
        assert len(context) + len(new) == (length + 1 if number else 1 + len(new))
        end = everything.index(new[-1]) + 1
        assert [*context, *new] == everything[end - len(context) - len(new) : end]


def test_long_pairs_lose_their_first_tokens() -> None:
    assert shortened([1, 2, 3], [4, 5], 3) == ([2, 3], [4, 5])
    assert shortened([1, 2, 3], [4, 5], 2) == ([3], [4, 5])
    assert shortened([1], [], 1) == ([1], [])
    with pytest.raises(ConfigError, match="scores a text of 2 tokens, and this model reads 1 at most"):
        shortened([1, 2, 3], [4, 5], 1)


def test_a_text_ends_before_the_first_of_its_ends() -> None:
    assert until_first("one. two, three", [",", "", "."]) == "one"
    assert until_first("one", [".", ""]) == "one"


def test_tokens_are_chosen_as_a_task_and_the_model_say() -> None:
    plain, model = Sampling(), Sampling(temperature=0.5, top_p=0.9, repetition_penalty=1.2)
    assert sampling_of_task({}, plain) == Sampling()
    assert sampling_of_task({"do_sample": False, "temperature": 0.7}, plain).temperature == 0
    assert sampling_of_task({}, model) == Sampling(temperature=0.0, top_p=0.9, repetition_penalty=1.2)
    assert sampling_of_task({"temperature": 0.7}, plain) == Sampling(temperature=0.7, top_k=50)
    assert sampling_of_task({"temperature": 0.7, "do_sample": True, "top_k": 0, "min_p": 0.1}, model) == Sampling(
        temperature=0.7, top_p=0.9, min_p=0.1, repetition_penalty=1.2
    )
    with pytest.raises(ConfigError, match="do_sample with temperature 0"):
        sampling_of_task({"do_sample": True}, plain)


def test_pairs_are_scored_in_their_order(model: TransformerInferenceModule) -> None:
    answers, tokenizer = Answers(model), model.tokenizer
    assert tokenizer is not None
    long = list(range(2, 62))
    requests: Sequence[Any] = [("a", [5, 6], [7]), ("b", long, [8, 9]), ("c", [5, 6], [7, 8]), ("d", [5, 6], [9])]
    found = answers._loglikelihood_tokens(requests)
    for (_, context, new), (total, greedy) in zip(requests, found, strict=True):
        row = torch.tensor([[*context, *new][-LENGTH - 1 :]])
        scores = model.logits(row)[0, -len(new) - 1 : -1].log_softmax(-1)
        assert total == pytest.approx(float(scores.gather(-1, torch.tensor(new)[:, None]).sum()), abs=1e-9)
        assert greedy == torch.equal(scores.argmax(-1), torch.tensor(new))
    assert [(kind, key) for kind, key, _ in answers.noted] == [("loglikelihood", key) for key in "abcd"]
    assert [answer for _, _, answer in answers.noted] == found
    assert answers._loglikelihood_tokens([("e", [], [7])]) == answers._loglikelihood_tokens([("f", [END], [7])])


def test_whole_texts_are_scored_in_windows(model: TransformerInferenceModule) -> None:
    answers, tokenizer = Answers(model), model.tokenizer
    assert tokenizer is not None
    texts = ("the cat sat on " * 12, "", "the mat")
    found = answers.loglikelihood_rolling(asked(*((text,) for text in texts)))
    for text, total in zip(texts, found, strict=True):
        tokens = [tokenizer.eos_token_id, *tokenizer.encode(text)]
        expected = 0.0
        for start in range(1, len(tokens), LENGTH):
            end = min(start + LENGTH, len(tokens))
            row = torch.tensor([tokens[max(0, end - LENGTH - 1) : end]])
            expected += float(model.log_likelihood(row)[0, start - end :].sum())
        assert total == pytest.approx(expected, abs=1e-9)
    assert len(tokenizer.encode(texts[0])) > LENGTH
    assert answers.noted[2] == ("loglikelihood_rolling", ("the mat",), found[2])


def test_contexts_are_continued_until_what_a_task_names(model: TransformerInferenceModule) -> None:
    answers, tokenizer = Answers(model), model.tokenizer
    assert tokenizer is not None
    contexts = ["the cat", "on the mat " * 8, "the cat"]
    free: dict[str, Any] = {"max_new_tokens": 9}
    short: dict[str, Any] = {"max_gen_toks": 3, "until": "<|over|>"}
    found = answers.generate_until(asked((contexts[0], free), (contexts[1], free), (contexts[2], short)))
    for context, new, text in zip(contexts, (9, 9, 3), found, strict=True):
        tokens = tokenizer.encode(context)[-(LENGTH - new) :]
        completion = model.generate(tokens, max_tokens=new, sampling=Sampling())
        assert text == tokenizer.decode(completion.completion_tokens)
    end = next(letter for letter in found[0][1:] if letter not in found[0][:1])
    (cut,) = answers.generate_until(asked((contexts[0], free | {"until": [end, ""]})))
    assert cut == found[0].partition(end)[0]


def test_special_tokens_end_a_text_where_a_task_names_them(model: TransformerInferenceModule) -> None:
    answers, tokenizer = Answers(model), model.tokenizer
    assert tokenizer is not None
    tokens = model.generate("the cat", max_tokens=9, sampling=Sampling(), stop_tokens=[]).completion_tokens
    name = tokenizer.token_name(tokens[3])
    (text,) = answers.generate_until(asked(("the cat", {"max_gen_toks": 9, "until": [name]})))
    assert text == until_first(tokenizer.decode(tokens[: tokens.index(tokens[3]) + 1]), [name or ""])


def test_what_a_task_may_not_ask_is_refused(model: TransformerInferenceModule) -> None:
    answers = Answers(model)
    with pytest.raises(ConfigError, match=f"generates {LENGTH} tokens, and this model knows texts of {LENGTH} at most"):
        answers.generate_until(asked(("the cat", {"max_gen_toks": LENGTH})))
    with pytest.raises(ConfigError, match="ask for num_beams 4, which is not done here"):
        answers.generate_until(asked(("the cat", {"max_gen_toks": 2, "num_beams": 4, "use_cache": True})))
    model_without = SimpleNamespace(tokenizer=None)
    with pytest.raises(ConfigError, match="no tokenizer beside it"):
        HarnessAnswers(model_without)  # type: ignore[arg-type]


def test_texts_become_tokens_with_what_the_tokenizer_adds(
    model: TransformerInferenceModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, plain = Answers(model), model.tokenizer
    assert plain is not None
    assert (answers.eot_token_id, answers.prefix_token_id, answers.max_length) == (END, END, LENGTH)
    assert answers.tok_encode("the cat") == plain.encode("the cat")
    backend = Backend.from_str(plain.to_str())
    backend.post_processor = TemplateProcessing(single="<|over|> $A", special_tokens=[("<|over|>", END_OF_TURN)])
    monkeypatch.setattr(model, "tokenizer", Tokenizer.from_str(backend.to_str()))
    answers = Answers(model)
    assert answers.prefix_token_id == END_OF_TURN
    assert answers.tok_encode("the cat") == [END_OF_TURN, *plain.encode("the cat")]
    assert answers.tok_encode("<|over|>the cat") == [END_OF_TURN, *plain.encode("the cat")]
    assert answers.tok_encode("the cat", add_special_tokens=False) == plain.encode("the cat")
    (text,) = answers.generate_until(asked(("<|over|>the cat", {"max_gen_toks": 4})))
    assert (text,) == tuple(answers.generate_until(asked(("the cat", {"max_gen_toks": 4}))))
