"""A trained model scores and continues text as it was trained, whatever layout it was trained in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scaling.core import CheckpointError, ConfigError, DataError
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.load import load_datasets
from scaling.transformer.data.prepare import prepare_data
from scaling.transformer.data.tokenizer import Tokenizer, train_tokenizer
from scaling.transformer.inference.generation import decider
from scaling.transformer.inference.generation.choosing import Chosen
from scaling.transformer.inference.generation.sampling import Sampling
from scaling.transformer.inference.module import TransformerInferenceModule
from tests.transformer.small import (
    VOCABULARY,
    build_corpus,
    layout,
    metrics,
    nested,
    settings_of,
    statuses,
    train_small,
    values,
)

EVERYTHING = {**layout(2, 2, 2), "optimizer.zero": True, "topology.sequence_parallel": True}
WHOLE_ROWS = {
    "transformer_architecture.reset_attention_mask": False,
    "transformer_architecture.reset_position_ids": False,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost such small products more than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_corpus(tmp_path_factory.mktemp("corpus") / "training")


def trained(data: Path, run: Path, *changes: dict[str, Any]) -> Path:
    """Train and return the folder of the checkpoints."""
    train_small(data, run, {"trainer.save_dir": str(run / "checkpoints"), "trainer.train_iterations": 6}, *changes)
    return run / "checkpoints"


@pytest.fixture(scope="module")
def checkpoint(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(data, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> TransformerInferenceModule:
    return TransformerInferenceModule.from_checkpoint(checkpoint)


def tokens(rows: int = 3, length: int = 12, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_initial_weights_give_the_same_bits_in_every_layout(data: Path, tmp_path: Path) -> None:
    untrained = {"trainer.train_iterations": 0, "logger.log_dir": None}
    settings = [{**untrained, "trainer.save_dir": str(tmp_path / name)} for name in ("whole", "cut")]
    assert statuses(data, tmp_path, settings[0]) == {0}
    assert statuses(data, tmp_path, settings[1], EVERYTHING) == {0}
    one, other = (TransformerInferenceModule.from_checkpoint(tmp_path / name) for name in ("whole", "cut"))
    assert torch.equal(one.logits(tokens()), other.logits(tokens()))


def test_logits_do_not_depend_on_the_layout_of_the_training(
    data: Path, model: TransformerInferenceModule, tmp_path: Path
) -> None:
    cut = TransformerInferenceModule.from_checkpoint(trained(data, tmp_path, EVERYTHING) / "global_step6")
    logits = model.logits(tokens())
    assert logits.shape == (3, 12, VOCABULARY)
    torch.testing.assert_close(cut.logits(tokens()), logits, rtol=1e-3, atol=1e-4)


def test_a_bfloat16_model_can_be_read_in_any_precision(data: Path, tmp_path: Path) -> None:
    folder = trained(data, tmp_path, {"transformer_architecture.precision": "bfloat16"})
    trained_one = TransformerInferenceModule.from_checkpoint(folder)
    assert trained_one.logits(tokens()).dtype == torch.bfloat16
    assert trained_one.log_likelihood(tokens()).dtype == torch.float32
    wide = TransformerInferenceModule.from_checkpoint(folder, precision="float64")
    torch.testing.assert_close(trained_one.logits(tokens()).double(), wide.logits(tokens()), rtol=0.1, atol=0.1)


def test_the_log_likelihood_is_the_loss_of_the_training(data: Path, tmp_path: Path) -> None:
    validation = {
        "data.validation_data_prefixes": [str(build_corpus(tmp_path / "validation", documents=9, seed=1))],
        "trainer.eval_interval": 6,
    }
    folder = trained(data, tmp_path, WHOLE_ROWS, validation)
    trained_model = TransformerInferenceModule.from_checkpoint(folder)
    config = prepare_data(TransformerConfig.from_dict(nested(settings_of(data, tmp_path, WHOLE_ROWS, validation))))
    _, held_out = load_datasets(config)
    assert held_out is not None
    samples = [held_out[index] for index in range(len(held_out))]
    batch: Any = held_out.collate(samples, range(len(samples)), [True] * len(samples))
    rows = torch.cat([batch.inputs.token_ids, batch.targets.token_ids[:, -1:]], dim=1)
    weights = batch.targets.loss_weights
    loss = -(trained_model.log_likelihood(rows) * weights).sum() / weights.sum()
    assert loss.item() == pytest.approx(values(metrics(tmp_path), "evaluation/loss")[-1], rel=1e-5)


def test_keys_and_values_kept_are_those_computed_again(model: TransformerInferenceModule) -> None:
    prompt = tokens(1, 5)[0].tolist()
    kept = [token for _, token in model.stream(prompt, max_tokens=24)]  # beyond the sequence length of the training
    sequence = list(prompt)
    for _ in range(24):
        sequence.append(int(model.logits(torch.tensor([sequence]))[0, -1].argmax()))
    assert kept == sequence[5:]


def test_the_scale_of_the_scores_acts_on_kept_keys_too() -> None:
    section = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 2, "num_attention_heads": 2}
    for scale in (1.0, 40.0):
        config = TransformerArchitectureConfig.from_dict({**section, "masked_softmax": {"scale": scale}})
        untrained = TransformerInferenceModule(config)
        kept = [token for _, token in untrained.stream([3, 1, 4, 1, 5], max_tokens=16)]
        logits = untrained.logits(torch.tensor([[3, 1, 4, 1, 5, *kept[:-1]]]))
        assert kept == logits[0, 4:].argmax(-1).tolist()


def test_the_model_can_be_used_between_two_tokens(model: TransformerInferenceModule) -> None:
    alone = list(model.stream([1, 2, 3], max_tokens=6))
    before = model.logits(tokens())
    one, other = model.stream([1, 2, 3]), model.stream([5, 6])
    mixed = []
    for _ in range(6):
        mixed.append(next(one))
        next(other)
        assert torch.equal(model.logits(tokens()), before)
    assert mixed == alone


def test_a_seed_draws_the_same_tokens_and_leaves_torchs_generator_alone(model: TransformerInferenceModule) -> None:
    sampling = Sampling(temperature=1.5)
    before = torch.get_rng_state()
    first, second = (model.generate(20, input_tokens=[3], sampling=sampling, seed=4) for _ in range(2))
    assert first == second
    assert first != model.generate(20, input_tokens=[3], sampling=sampling, seed=5)
    different = {tuple(model.generate(20, input_tokens=[3], sampling=sampling).completion_tokens) for _ in range(4)}
    assert len(different) > 1
    assert torch.equal(torch.get_rng_state(), before)


def test_generation_ends_with_the_stop_token_or_after_so_many(
    model: TransformerInferenceModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = _play(monkeypatch, [7, 8, 9, 10, 11])
    assert model.generate(3, input_tokens=[1]).completion_tokens == [7, 8, 9]
    assert next(script) == 10, "a fourth token was computed for nothing"
    _play(monkeypatch, [7, 8, 9])
    assert model.generate(3, input_tokens=[1], stop_tokens=[8]).completion_tokens == [7, 8]
    assert model.generate(0, input_tokens=[1]).completion_tokens == []


def _play(monkeypatch: pytest.MonkeyPatch, script: Sequence[int]) -> Iterator[int]:
    """Let models choose these tokens."""
    played = iter(script)
    monkeypatch.setattr(decider, "choose_tokens", lambda logits, draws: [Chosen(next(played)) for _ in draws])
    return played


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.generate(1), "either as input_text or as input_tokens"),
        (lambda model: model.generate(1, input_text="a", input_tokens=[1]), "either as input_text or as input_tokens"),
        (lambda model: model.generate(1, input_text="a"), "no tokenizer beside it; give the prompt as token ids"),
        (lambda model: next(model.stream_text("a", max_tokens=1)), "no tokenizer beside it"),
        (lambda model: model.generate(1, input_tokens=[]), "the prompt is empty"),
        (lambda model: model.generate(1, input_tokens=[67]), "token 67, outside the vocabulary of 67"),
        (lambda model: model.generate(1, input_tokens=[-1]), "token -1, outside the vocabulary of 67"),
        (lambda model: model.generate(-1, input_tokens=[1]), r"max_tokens \(-1\) must be at least 0"),
        (lambda model: model.generate(1, input_tokens=[1], seed=2**64), "seed .* must be .* below 2\\^64"),
        (lambda model: next(model.stream([])), "the prompt is empty"),
        (lambda model: next(model.stream([67])), "token 67, outside the vocabulary of 67"),
        (lambda model: model.logits(torch.tensor([1, 2])), r"shape \[2\] and type torch.int64"),
        (lambda model: model.logits(torch.tensor([[1.0]])), r"shape \[1, 1\] and type torch.float32"),
        (lambda model: model.logits(torch.tensor([[67]])), "token 67, outside the vocabulary of 67"),
        (lambda model: model.log_likelihood(torch.tensor([[1, -1]])), "token -1, outside the vocabulary of 67"),
        (lambda model: Sampling(temperature=math.nan), r"temperature \(nan\) must be a number of at least 0"),
        (lambda model: Sampling(temperature=-1.0), r"temperature \(-1.0\) must be a number of at least 0"),
        (lambda model: Sampling(top_k=0), r"top_k \(0\) must be at least 1"),
        (lambda model: Sampling(top_p=0.0), r"top_p \(0.0\) must be above 0 and at most 1"),
        (lambda model: Sampling(top_p=1.5), r"top_p \(1.5\) must be above 0 and at most 1"),
    ],
)
def test_what_cannot_be_asked_gets_a_message(
    model: TransformerInferenceModule, call: Callable[[TransformerInferenceModule], object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        call(model)


def test_a_model_that_sees_what_comes_does_not_continue_texts() -> None:
    config = TransformerArchitectureConfig.from_dict({"vocab_size": 7, "hidden_size": 16, "causal": False})
    with pytest.raises(ConfigError, match="causal false"):
        TransformerInferenceModule(config).generate(1, input_tokens=[1])


def test_a_prompt_may_be_an_array(model: TransformerInferenceModule) -> None:
    prompts: list[Any] = [[3, 4], (3, 4), np.array([3, 4]), torch.tensor([3, 4])]
    assert len({tuple(model.generate(4, input_tokens=prompt).completion_tokens) for prompt in prompts}) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float8"}, r"precision \(float8\) .*float16, bfloat16, float32, float64"),
        ({"device": "cuda:99"}, r"device \(cuda:99\)"),
        ({"device": "banana"}, r"device \(banana\)"),
    ],
)
def test_a_precision_or_device_that_is_not_there_gets_a_message(
    checkpoint: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        TransformerInferenceModule.from_checkpoint(checkpoint, **options)


def test_what_is_no_checkpoint_gets_a_message(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        TransformerInferenceModule.from_checkpoint(tmp_path / "nowhere")


# Sampling.


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the cat and the hat. the end of the cat, the end."] * 3, 280)


@pytest.fixture(scope="module")
def speaker(tokenizer: Tokenizer) -> TransformerInferenceModule:
    config = TransformerArchitectureConfig.from_dict(
        {"vocab_size": tokenizer.vocab_size, "hidden_size": 16, "num_layers": 1, "num_attention_heads": 2}
    )
    return TransformerInferenceModule(config, tokenizer=tokenizer)


@settings(max_examples=100)
@given(
    text=st.text(st.sampled_from("the cand hä€🙂.\n"), max_size=25),
    stops=st.lists(st.text(st.sampled_from("the cä€🙂"), min_size=1, max_size=4), max_size=3),
)
def test_streamed_text_is_what_comes_before_the_first_stop_text(
    speaker: TransformerInferenceModule, tokenizer: Tokenizer, text: str, stops: list[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _play(patch, [*tokenizer.encode(text), tokenizer.eos_token_id, 5, 5])
        pieces = list(speaker.stream_text("the", max_tokens=200, stop=stops))
    shown = "".join(pieces)
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
    if not any(stop in text for stop in stops):
        assert shown == text
    else:
        assert any(text[len(shown) :].startswith(stop) for stop in stops)


def test_the_stop_text_that_comes_first_in_the_text_ends_it(
    speaker: TransformerInferenceModule, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One token may bring several stop texts: their order in the list says nothing."""
    token = tokenizer.encode("the cat")[-1]
    assert tokenizer.decode([token]) == " cat"
    for stops in (["c", "t"], ["t", "c"]):
        _play(monkeypatch, [token, 5, 5])
        assert "".join(speaker.stream_text("the", max_tokens=3, stop=stops)) == " "


def test_whatever_may_become_a_stop_text_is_held_back_from_its_first_character(
    speaker: TransformerInferenceModule, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stop in ("da", "dab", "dabe"):
        _play(monkeypatch, [*(tokenizer.encode(letter)[0] for letter in f"x{stop}"), 5, 5])
        assert "".join(speaker.stream_text("the", max_tokens=9, stop=[stop])) == "x"


def test_characters_come_whole_and_as_soon_as_they_are_known(
    speaker: TransformerInferenceModule, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    _play(monkeypatch, tokenizer.encode("a🙂b"))
    pieces = [piece for piece in speaker.stream_text("the", max_tokens=6) if piece]
    assert pieces == ["a", "🙂", "b"]


def test_a_character_that_the_limit_has_cut_is_left_out(
    speaker: TransformerInferenceModule, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    _play(monkeypatch, tokenizer.encode("a🙂b"))
    assert "".join(speaker.stream_text("the", max_tokens=3)) == "a"


def test_an_empty_stop_text_is_refused(speaker: TransformerInferenceModule) -> None:
    with pytest.raises(ConfigError, match="a stop text is empty"):
        next(speaker.stream_text("the", max_tokens=6, stop=[""]))


def test_the_end_of_a_document_ends_the_text(
    speaker: TransformerInferenceModule, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    _play(monkeypatch, [*tokenizer.encode("the end"), tokenizer.eos_token_id, 5])
    completion = speaker.generate(20, input_text="a")
    assert completion.completion_text == "the end"
    assert completion.completion_tokens == [*tokenizer.encode("the end"), tokenizer.eos_token_id]


def test_the_end_of_a_document_is_the_one_of_the_training(tokenizer: Tokenizer) -> None:
    renamed = Tokenizer.from_str(tokenizer.to_str().replace("<|endoftext|>", "<done>"))
    with pytest.raises(DataError, match="no end-of-document token"):
        _ = renamed.eos_token_id
    config = TransformerArchitectureConfig.from_dict(
        {"vocab_size": renamed.vocab_size, "hidden_size": 16, "num_layers": 1, "num_attention_heads": 2}
    )
    model = TransformerInferenceModule(config, tokenizer=renamed, eod_token_id=0)
    with pytest.MonkeyPatch.context() as patch:
        _play(patch, [*renamed.encode("the end"), 0, 5])
        assert "".join(model.stream_text("a", max_tokens=9)) == "the end"
        _play(patch, [*renamed.encode("the end"), 0, 5])
        assert model.generate(9, input_text="a").completion_text == "the end"
