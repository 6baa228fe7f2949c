"""What a model's files say of generating is understood as `transformers` does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scaling.core import CheckpointError
from scaling.transformer.hf.companions import Origin
from scaling.transformer.inference.generation.defaults import GenerationDefaults, read_defaults
from scaling.transformer.inference.generation.sampling import Sampling


def written(folder: Path, **fields: Any) -> GenerationDefaults:
    (folder / "generation_config.json").write_text(json.dumps(fields))
    return read_defaults(folder)


def test_without_a_file_the_most_likely_token_is_taken(tmp_path: Path) -> None:
    assert read_defaults(tmp_path) == GenerationDefaults()
    assert GenerationDefaults().sampling == Sampling()


@pytest.mark.parametrize(
    ("fields", "sampling"),
    [
        ({}, Sampling()),
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, Sampling()),
        ({"do_sample": None, "temperature": 0.6, "repetition_penalty": 1.1}, Sampling(repetition_penalty=1.1)),
        ({"do_sample": True}, Sampling(temperature=1.0, top_k=50)),
        ({"do_sample": True, "top_k": None, "top_p": None}, Sampling(temperature=1.0, top_k=50)),
        ({"do_sample": True, "top_k": 0, "min_p": 0}, Sampling(temperature=1.0)),
        ({"do_sample": True, "top_p": 0, "top_k": 0}, Sampling(temperature=1.0, top_p=5e-324)),
        ({"do_sample": True, "temperature": 0, "top_k": 20}, Sampling(top_k=20)),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1, "repetition_penalty": 2},
            Sampling(temperature=0.6, top_k=20, top_p=0.95, min_p=0.1, repetition_penalty=2.0),
        ),
    ],
    ids=str,
)
def test_sampling_is_that_of_the_file(fields: dict[str, Any], sampling: Sampling, tmp_path: Path) -> None:
    assert written(tmp_path, **fields) == GenerationDefaults(sampling=sampling)


def test_ends_are_those_of_the_import_and_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "huggingface.json").write_bytes(Origin("llama", (2, 7)).encode())
    assert read_defaults(tmp_path).end_token_ids == (2, 7)
    assert written(tmp_path, eos_token_id=5).end_token_ids == (2, 7, 5)
    assert written(tmp_path, eos_token_id=[7, 9], max_new_tokens=30, min_new_tokens=4) == GenerationDefaults(
        max_tokens=30, min_tokens=4, end_token_ids=(2, 7, 9)
    )
    assert written(tmp_path, eos_token_id=None).end_token_ids == (2, 7)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -1}, "temperature (-1.0) must be a number of at least 0"),
        ({"temperature": "hot"}, "temperature is hot; it has to be a number, or null"),
        ({"top_k": -1}, "top_k is -1; it has to be a whole number of at least 0, or null"),
        ({"top_k": 1.5}, "top_k is 1.5; it has to be a whole number"),
        ({"top_p": 1.5}, "top_p (1.5) must be above 0 and at most 1"),
        ({"min_p": True}, "min_p is True; it has to be a number"),
        ({"repetition_penalty": 0}, "repetition_penalty (0.0) must be a number above 0"),
        ({"do_sample": "yes"}, "do_sample is yes; it has to be true or false"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it has to be a whole number of at least 1"),
        ({"min_new_tokens": [3]}, "min_new_tokens is [3]; it has to be a whole number of at least 0"),
        ({"eos_token_id": [2, "</s>"]}, "eos_token_id is [2, '</s>']; it has to be a token id or a list of them"),
        ({"eos_token_id": -1}, "eos_token_id is -1; it has to be a token id"),
        ({"eos_token_id": list(range(-1, 99))}, "eos_token_id is [-1, 0, 1,"),
    ],
    ids=str,
)
def test_what_cannot_be_is_named(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Also where it would not act."""
    with pytest.raises(CheckpointError) as raised:
        written(tmp_path, **fields)
    assert str(raised.value).startswith(f"{tmp_path / 'generation_config.json'}: ")
    assert message in str(raised.value)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("text", ["{", "[]", '{"temperature": NaN}', '{"top_k": 1, "top_k": 2}'])
def test_what_is_no_configuration_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"generation_config.json"):
        read_defaults(tmp_path)


def test_what_is_not_done_is_said(tmp_path: Path) -> None:
    found = written(
        tmp_path,
        num_beams=4,
        no_repeat_ngram_size=0,
        typical_p=0.5,
        bad_words_ids=[[1]],
        suppress_tokens=[],
        guidance_scale=1,
        max_length=4096,
        min_length=0,
        penalty_alpha=None,
        token_healing=False,
        transformers_version="5",
    )
    assert found.notes == (
        "generation_config.json asks for num_beams 4, which is not done here",
        "generation_config.json asks for bad_words_ids [[1]], which is not done here",
        "generation_config.json asks for max_length 4096, which is not done here",
    )
    assert written(tmp_path, do_sample=True, typical_p=0.5, epsilon_cutoff=0, max_length=9, max_new_tokens=3).notes == (
        "generation_config.json asks for typical_p 0.5, which is not done here",
    )
    assert written(tmp_path, num_beams="many").notes == (
        "generation_config.json asks for num_beams many, which is not done here",
    )
