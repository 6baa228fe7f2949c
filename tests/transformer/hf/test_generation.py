"""Imported models continue texts as in transformers: alone, in a batch, in every layout, and as their files say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from scaling.transformer.hf.importer import import_model
from scaling.transformer.inference.generation.completion import Completion
from scaling.transformer.inference.module import TransformerInferenceModule
from tests.distributed import run_distributed
from tests.transformer.hf.generated import LENGTHS, NEW, texts_as_rank, tokens_of
from tests.transformer.hf.tiny_models import tiny_model, tokens

FAMILIES: Final = ("llama", "qwen3", "gemma2", "gpt_neox", "olmo2", "smollm3")
VOCABULARY: Final = 131
DRAWS: Final = 3000
NO_END: Final = VOCABULARY
"""Beyond the vocabulary, so that no text ends before it has all its tokens."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost such small products more than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def prompts() -> list[list[int]]:
    return [tokens(length)[0].tolist() for length in LENGTHS]


@cache
def lively(name: str) -> Any:
    """Return a model whose texts do not stay with one token, as a tied embedding of large numbers makes them do."""
    model = deepcopy(tiny_model(name))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(0.1 if name == "gemma2" and "embed" in key else 2.0)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Imports of all families."""
    root = tmp_path_factory.mktemp("imports")
    for name in FAMILIES:
        lively(name).save_pretrained(root / name / "theirs")
        import_model(root / name / "theirs", root / name / "ours")
    return {name: root / name / "ours" for name in FAMILIES}


def opened(folder: Path, **options: Any) -> TransformerInferenceModule:
    model = TransformerInferenceModule.from_checkpoint(folder, **options)
    model.end_token_ids = frozenset()
    return model


def said_by(model: Any, texts: Sequence[Sequence[int]], **asked: Any) -> list[list[int]]:
    """Return how transformers goes on, for all texts at once: it pads them in front."""
    longest = max(map(len, texts))
    ids = torch.tensor([[0] * (longest - len(text)) + list(text) for text in texts])
    mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
    out = model.generate(ids, attention_mask=mask, **asked)
    found: list[list[int]] = out[:, longest:].tolist()
    return found


def uncached(model: TransformerInferenceModule, text: Sequence[int], new: Sequence[int]) -> tuple[list[int], float]:
    """Return the most likely token in each place of `new`, from the whole text, and by how much it is."""
    logits = model.logits(torch.tensor([[*text, *new]]))[0, len(text) - 1 : -1]
    best = logits.topk(2).values
    return logits.argmax(dim=-1).tolist(), float((best[:, 0] - best[:, 1]).min())


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_are_those_of_transformers_alone_and_together_cached_or_not(
    name: str, folders: Mapping[str, Path]
) -> None:
    model = opened(folders[name])
    expected = said_by(lively(name), prompts(), max_new_tokens=NEW, do_sample=False, eos_token_id=NO_END)
    assert len({token for text in expected for token in text}) > 40
    assert tokens_of(model.generate(prompts(), max_tokens=NEW)) == expected
    for prompt, text in zip(prompts(), expected, strict=True):
        assert model.generate(prompt, max_tokens=NEW).completion_tokens == text
        found, margin = uncached(model, prompt, text)  # as good as one token after the other, while they are the same
        assert found == text
        assert margin > 1e-4, "so near that another machine may choose otherwise"


def everything(completion: Completion) -> Tensor:
    """Return the log-probabilities of all tokens in all places."""
    assert completion.best is not None
    found = torch.full((len(completion.best), VOCABULARY), torch.nan, dtype=torch.float64)
    for place, best in enumerate(completion.best):
        for token, log_probability in best:
            found[place, token] = log_probability
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_a_text_depends_on_none_of_its_neighbours(name: str, folders: Mapping[str, Path]) -> None:
    model = opened(folders[name], precision="float64")
    asked: dict[str, Any] = {"max_tokens": 6, "log_probabilities": VOCABULARY, "chunk_size": 50}
    together = model.generate(prompts(), **asked)
    others = [prompt if place % 2 else [1] * 37 for place, prompt in enumerate(reversed(prompts()))]
    among_others = model.generate(others, **asked)[::-1]
    for place, prompt in enumerate(prompts()):
        alone = model.generate(prompt, **asked)
        torch.testing.assert_close(everything(together[place]), everything(alone), rtol=0, atol=1e-10)
        whole = model.logits(torch.tensor([[*prompt, *alone.completion_tokens]]))[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(everything(alone), whole.log_softmax(dim=-1), rtol=0, atol=1e-10)
        if place % 2 == 0:
            torch.testing.assert_close(everything(among_others[place]), everything(alone), rtol=0, atol=1e-10)


def test_of_equally_likely_tokens_the_lowest_is_chosen(folders: Mapping[str, Path]) -> None:
    model = opened(folders["llama"])
    [head] = [tensor.parts[0][1] for tensor in model.module.global_tensors() if tensor.key == "layers.6.linear.weight"]
    for tied in ((0, 130), (7, 8, 64), (129, 130), tuple(range(30, 95))):
        with torch.no_grad():  # one product each, so that sums in whatever order are the same to the last bit
            head.zero_()
            hidden = model.hidden_states(torch.tensor([prompts()[3]]), [5])[5][0, -1]
            feature = int(hidden.abs().argmax())
            head[list(tied), feature] = torch.sign(hidden[feature])
        found = model.generate(prompts()[3], max_tokens=1, log_probabilities=3)
        assert found.completion_tokens == [tied[0]]
        assert found.best is not None
        assert [token for token, _ in found.best[0]][: len(tied)] == list(tied[:3])
        assert tokens_of(model.generate(prompts(), max_tokens=1))[3] == [tied[0]]


def require_alike(folders: Mapping[str, Path], names: Sequence[str], pipe: int, model: int) -> None:
    chosen = [folders[name] for name in names]
    ranks = run_distributed(texts_as_rank, pipe * model, chosen, prompts(), pipe, model)
    for place, name in enumerate(names):
        expected = tokens_of(opened(folders[name]).generate(prompts(), max_tokens=NEW))
        exact = opened(folders[name], precision="float64")
        wanted = torch.stack(
            [everything(one) for one in exact.generate(prompts(), max_tokens=3, log_probabilities=VOCABULARY)]
        )
        for rank in ranks:
            texts, numbers = rank[place]
            assert texts == expected
            found = torch.stack([everything(one) for one in numbers])
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def test_a_layout_gives_the_same_texts(folders: Mapping[str, Path]) -> None:
    require_alike(folders, ["gemma2"], 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("pipe", "model"), [(1, 2), (2, 1), (2, 2)])
def test_every_layout_gives_the_same_texts(folders: Mapping[str, Path], pipe: int, model: int) -> None:
    require_alike(folders, FAMILIES, pipe, model)


def with_file(folder: Path, **fields: Any) -> tuple[Any, TransformerInferenceModule]:
    """Return the model of transformers and ours, both with a generation configuration of these fields."""
    tiny_model("qwen3").save_pretrained(folder / "theirs")
    (folder / "theirs" / "generation_config.json").write_text(json.dumps(fields))
    import_model(folder / "theirs", folder / "ours")
    theirs = AutoModelForCausalLM.from_pretrained(folder / "theirs", attn_implementation="eager")
    return theirs, TransformerInferenceModule.from_checkpoint(folder / "ours")


def test_ends_penalty_and_minimum_of_the_file_act_as_in_transformers(tmp_path: Path) -> None:
    ends = list(range(20, 60))
    fields = {"eos_token_id": ends, "pad_token_id": 0, "max_new_tokens": 24, "min_new_tokens": 3}
    theirs, ours = with_file(tmp_path, **fields, repetition_penalty=1.3)
    expected = [said_by(theirs, [prompt])[0] for prompt in prompts()]  # else it would penalize the padding
    found = ours.generate(prompts())
    assert tokens_of(found) == expected
    lengths = {len(text) for text in expected}
    assert len(lengths) > 2
    assert min(lengths) > 3
    assert [one.finish_reason for one in found] == [
        "stop" if one.completion_tokens[-1] in ends else "length" for one in found
    ]
    for penalty in (1.0, 1.9, 0.8):
        asked: dict[str, Any] = {"repetition_penalty": penalty, "min_new_tokens": 0}
        expected = [said_by(theirs, [prompt], **asked)[0] for prompt in prompts()]
        sampling = replace(ours.defaults.sampling, repetition_penalty=penalty)
        assert tokens_of(ours.generate(prompts(), sampling=sampling, min_tokens=0)) == expected, penalty


@pytest.mark.parametrize(
    "fields", [{}, {"temperature": 1.7, "top_k": 40, "top_p": 0.9}, {"temperature": 2.0, "top_k": 0, "min_p": 0.05}]
)
def test_tokens_are_drawn_as_the_file_says(fields: dict[str, Any], tmp_path: Path) -> None:
    theirs, ours = with_file(tmp_path, do_sample=True, pad_token_id=0, eos_token_id=2, repetition_penalty=1.1, **fields)
    prompt = prompts()[3]
    out = theirs.generate(torch.tensor([prompt]), max_new_tokens=1, return_dict_in_generate=True, output_scores=True)
    exact = out.scores[0][0].double().softmax(dim=-1)
    drawn = [one.completion_tokens[0] for one in ours.generate(prompt, max_tokens=1, samples=DRAWS, seed=11)]
    counts = torch.bincount(torch.tensor(drawn), minlength=VOCABULARY).double()
    assert not counts[exact == 0].any()
    often = exact * DRAWS > 5
    assert 3 < int(often.sum()) <= int((exact > 0).sum()) < VOCABULARY
    differences = (counts - exact * DRAWS)[often] ** 2 / (exact[often] * DRAWS)
    p = torch.special.gammaincc((often.sum().double() - 1) / 2, differences.sum() / 2)
    assert float(p) > 0.001
