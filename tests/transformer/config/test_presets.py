"""The architectures of published models have their published numbers of parameters."""

from __future__ import annotations

import time
from math import prod

import pytest
from typer.testing import CliRunner

from scaling.cli.main import app
from scaling.core.config.yaml_text import parse_value
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.config.presets import PRESETS
from scaling.transformer.config.root import TransformerConfig

PUBLISHED = {
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "gemma2-2b": 2_614_341_888,
    "gemma2-9b": 9_241_705_984,
    "gemma2-27b": 27_227_128_320,
    "pythia-160m": 162_322_944,
    "pythia-1.4b": 1_414_647_808,
    "pythia-6.9b": 6_857_302_016,
    "olmo2-7b": 7_298_617_344,
    "olmo2-13b": 13_716_198_400,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "smollm3-3b": 3_075_098_624,
}


def test_parameters_are_the_published_integers() -> None:
    began = time.process_time()
    counted = {
        name: plan_of(TransformerArchitectureConfig.from_dict(dict(section))).num_parameters
        for name, section in PRESETS.items()
    }
    assert counted == PUBLISHED
    assert time.process_time() - began < 10


def test_parameters_are_counted_as_they_are_listed() -> None:
    for name in ("gemma2-2b", "olmo2-7b", "pythia-160m", "smollm3-3b"):
        plan = plan_of(TransformerArchitectureConfig.from_dict(dict(PRESETS[name])))
        assert plan.num_parameters == sum(prod(parameter.shape) for parameter in plan.parameters())


@pytest.mark.parametrize("name", ["llama3-8b", "gemma2-9b"])
def test_a_template_of_a_preset_loads_as_that_model(name: str) -> None:
    result = CliRunner().invoke(app, ["config", "template", "--preset", name])
    assert result.exit_code == 0
    loaded = TransformerConfig.from_dict(parse_value(result.stdout)).transformer_architecture
    assert loaded == TransformerArchitectureConfig.from_dict(dict(PRESETS[name]))


def test_an_unknown_preset_is_refused_with_those_there_are() -> None:
    result = CliRunner().invoke(app, ["config", "template", "--preset", "llama-3"])
    assert result.exit_code == 2
    assert "preset: is 'llama-3', but must be one of llama2-7b, llama2-13b," in result.stderr
