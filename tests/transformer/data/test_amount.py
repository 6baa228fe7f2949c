"""Texts that make no sequence are told before a run starts, and only these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scaling.core import DataError
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.amount import FEW, amount_problems
from scaling.transformer.data.load import load_datasets
from scaling.transformer.data.prepare import prepare_data
from scaling.transformer.data.source import Sources
from tests.transformer.small import VOCABULARY, build_corpus


def told(data: dict[str, Any], sequence_length: int) -> list[str]:
    """Return what is told of data before a run; loading them must agree."""
    architecture = {"vocab_size": VOCABULARY, "sequence_length": sequence_length}
    config = TransformerConfig.from_dict({"data": data, "transformer_architecture": architecture})
    sources = Sources(config.data, vocab_size=VOCABULARY, vocab_file=None)
    opened = {
        f"data.{name}.{index}": (prefix, sources.open(prefix))
        for name in ("data_prefixes", "validation_data_prefixes")
        for index, prefix in enumerate(getattr(config.data, name) or ())
    }
    problems = [str(problem) for problem in amount_problems(opened, config.data, config.transformer_architecture)]
    prepared = prepare_data(config)
    if problems:
        with pytest.raises(DataError) as raised:
            load_datasets(prepared)
        assert any(problem.endswith(str(raised.value)) for problem in problems)
    else:
        load_datasets(prepared)
    return problems


def test_each_data_set_makes_a_sequence(tmp_path: Path) -> None:
    short, long = (str(build_corpus(tmp_path / str(count), documents=count)) for count in (1, 60))
    assert told({"data_prefixes": [long]}, 100) == []
    (problem,) = told({"data_prefixes": [long, short]}, 100)
    assert problem.startswith(f"data.data_prefixes.1: {short}: 1 document makes no sequence of 100 + 1 tokens; give")
    assert told({"data_prefixes": [long], "validation_data_prefixes": [short]}, 100) == []  # filled up


def test_what_is_held_out_makes_a_sequence_in_one_of_the_data_sets(tmp_path: Path) -> None:
    some, one = (str(build_corpus(tmp_path / str(count), documents=count)) for count in (60, 1))
    assert told({"data_prefixes": [some, one], "validation_fraction": 0.1}, 8) == []
    (problem,) = told({"data_prefixes": [one], "validation_fraction": 0.001}, 8)
    assert problem.startswith("data.validation_fraction: ")
    assert "in the validation part" in problem
    (problem,) = told({"data_prefixes": [one], "validation_fraction": 0.999}, 8)
    assert "in the train part" in problem


def test_many_documents_are_left_to_the_run(tmp_path: Path) -> None:
    many = build_corpus(tmp_path / "many", documents=FEW + 1)
    data = {"data_prefixes": [str(many)], "only_full_sequences": True}
    config = TransformerConfig.from_dict({"data": data, "transformer_architecture": {"sequence_length": 999}})
    documents = Sources(config.data, vocab_size=VOCABULARY, vocab_file=None).open(many)
    opened = {"data.data_prefixes.0": (many, documents)}
    assert not list(amount_problems(opened, config.data, config.transformer_architecture))
