"""A soft prompt stands in front of every record, and leaves room for it."""

from __future__ import annotations

import re

import pytest

from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.data import DataConfig
from scaling.transformer.config.finetuning import SoftpromptConfig
from scaling.transformer.config.record_checks import soft_prompt_has_its_places


@pytest.mark.parametrize(
    ("tokens", "data", "problem"),
    [
        (7, {"record_format": "auto", "data_prefixes": ["a"]}, None),
        (7, {}, None),
        (8, {}, "is 8, but a sequence has 8 tokens .*so that no text fits .*; use at most 7"),
        (7, {"data_prefixes": ["a"]}, "but the data are a stream of texts.*set data.record_format to auto"),
        (7, {"corpus": "python_stdlib"}, "but the data are a stream of texts"),
    ],
)
def test_a_soft_prompt_has_its_places(tokens: int, data: dict[str, object], problem: str | None) -> None:
    prompt = SoftpromptConfig(name="a", n_tokens=tokens)
    architecture = TransformerArchitectureConfig.from_dict({"sequence_length": 8})
    architecture = architecture.model_copy(update={"softprompt_config": prompt})
    found = [str(one) for one in soft_prompt_has_its_places(architecture, DataConfig.from_dict(data))]
    assert len(found) == (problem is not None)
    if problem is not None:
        assert re.search(problem, found[0])
