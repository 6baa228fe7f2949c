"""Which modules a configuration means, as peft itself says; and endings that mean what they should."""

from __future__ import annotations

from typing import Any, Final

import hypothesis.strategies as st
import peft
import pytest
from hypothesis import given
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from scaling.transformer.hf.peft.fields import complete
from scaling.transformer.hf.peft.matching import by_ending, endings, is_named, is_target, raw_endings, value_of

NAMES: Final = [
    *(
        f"model.layers.{layer}.{name}"
        for layer in (0, 1, 2, 11)
        for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj", "input_layernorm")
    ),
    *(f"transformer.h.{layer}.{name}" for layer in (1, 11) for name in ("attn.c_proj", "mlp.c_proj", "mlp.c_fc")),
    *("model.embed_tokens", "model.norm", "lm_head"),
]
CONFIGS: Final[list[dict[str, Any]]] = [
    {"target_modules": ["q_proj", "norm"]},
    {"target_modules": ["mlp.c_proj", "model.layers.1.mlp.down_proj", "lm_head"]},
    {"target_modules": r".*\.(1|11)\..*proj"},
    {"target_modules": r"q_proj|model\.layers\.\d\.mlp\.down_proj"},
    {"target_modules": ["q_proj", "down_proj"], "exclude_modules": ["0.self_attn.q_proj", "down_proj"]},
    {"target_modules": ["q_proj", "c_proj"], "exclude_modules": r".*\.1\..*"},
    {"target_modules": ["q_proj", "c_proj", "lm_head"], "layers_to_transform": 1},
    {"target_modules": ["q_proj", "c_proj"], "layers_to_transform": [1, 11], "layers_pattern": "h"},
    {"target_modules": ["q_proj", "c_proj"], "layers_to_transform": [0, 2], "layers_pattern": ["layers", "blocks"]},
    {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["lm_head", "layers.1"]},
]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_configuration_means_the_modules_that_peft_takes(config: dict[str, Any]) -> None:
    settings, theirs = complete({"peft_type": "LORA", **config}), peft.LoraConfig(**config)
    for name in NAMES:
        # peft gives back a match, or an object that is false and says that the module is left out on purpose.
        assert is_target(settings, name, is_linear=True) == bool(check_target_module_exists(theirs, name)), name


@pytest.mark.parametrize(
    "patterns", [{"q_proj": 1, r".*\.1\..*": 2}, {"proj": 1, "c_proj": 3}, {r"layers\.1\.mlp\.down_proj|lm_head": 4}]
)
def test_the_first_pattern_that_fits_the_end_gives_the_value(patterns: dict[str, int]) -> None:
    for name in NAMES:
        assert value_of(patterns, name, 0) == patterns.get(get_pattern_key(list(patterns), name), 0)


@given(st.sets(st.sampled_from(NAMES), min_size=1))
def test_endings_mean_exactly_the_wanted_modules(wanted: set[str]) -> None:
    named = endings(sorted(wanted), NAMES)
    assert {name for name in NAMES if is_named(named, name)} == wanted
    raw = raw_endings(sorted(wanted), NAMES)
    assert {name for name in NAMES if any(name.endswith(ending) for ending in raw)} == wanted


@given(st.dictionaries(st.sampled_from(NAMES), st.integers(1, 3), min_size=1))
def test_patterns_give_each_module_its_value(values: dict[str, int]) -> None:
    patterns = by_ending(values, 2)
    assert {name: value_of(patterns, name, 2) for name in values} == values


def test_what_all_have_is_said_in_short() -> None:
    everywhere = [name for name in NAMES if name.endswith(("q_proj", "mlp.c_proj"))]
    assert endings(everywhere, NAMES) == ["q_proj", "mlp.c_proj"]
    assert endings(["model.layers.1.mlp.down_proj"], NAMES) == ["model.layers.1.mlp.down_proj"]
    assert raw_endings(["model.norm"], NAMES) == ["model.norm"]
    assert by_ending({name: 5 for name in everywhere}, 4) == {"q_proj": 5, "c_proj": 5}
