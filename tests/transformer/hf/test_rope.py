"""Rotations of config.json in the present schema and in those before it, one trap each."""

from __future__ import annotations

from typing import Any

import pytest

from scaling.core import ConfigError
from scaling.transformer.hf.choose import family_of
from tests.transformer.hf.in_memory import architecture_of

LLAMA: dict[str, Any] = {"model_type": "llama", "max_position_embeddings": 8192}
PAIRS = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}


def section(config: dict[str, Any]) -> dict[str, Any]:
    return family_of(config).section(config)


@pytest.mark.parametrize(
    ("fields", "base", "rotary"),
    [
        ({}, 10000.0, None),
        ({"rope_theta": 5.0}, 5.0, None),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}, "rope_theta": 7.0}, 5.0, None),
        ({"rope_parameters": {"rope_type": "default"}, "rope_theta": 7.0}, 7.0, None),
        ({"rope_parameters": {"rope_theta": 5.0}}, 5.0, None),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 10000.0, {"type": "linear", "factor": 2.0}),
        (
            {"rope_scaling": {"type": "yarn", "rope_type": "linear", "factor": 2.0}},  # the newer name wins
            10000.0,
            {"type": "linear", "factor": 2.0},
        ),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            10000.0,
            {"type": "dynamic", "factor": 2.0, "trained_length": 8192},
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "attention_factor": None}},
            10000.0,
            {"type": "yarn", "factor": 2.0, "trained_length": 8192},
        ),
        (
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 2.0,
                    "original_max_position_embeddings": 4096,
                    "mscale": 0.7,
                    "mscale_all_dim": 0.8,
                    "truncate": False,
                }
            },
            10000.0,
            {
                "type": "yarn",
                "factor": 2.0,
                "trained_length": 4096,
                "mscale": 0.7,
                "mscale_all_dim": 0.8,
                "truncate": False,
            },
        ),
    ],
)
def test_rotation_of_a_llama(fields: dict[str, Any], base: float, rotary: dict[str, Any] | None) -> None:
    found = section({**LLAMA, **fields})
    assert found["rotary_embedding_base"] == base
    assert found.get("rotary") == rotary


@pytest.mark.parametrize(
    ("fields", "base", "share"),
    [
        ({}, 10000.0, 0.25),
        ({"rotary_emb_base": 5.0, "rotary_pct": 0.5}, 5.0, 0.5),
        ({"rotary_emb_base": 5.0, "rope_theta": 5.0, "rotary_pct": 0.5, "partial_rotary_factor": 0.5}, 5.0, 0.5),
        ({"rope_parameters": {"rope_theta": 5.0, "partial_rotary_factor": 1.0}, "rotary_pct": 0.5}, 5.0, 1.0),
    ],
)
def test_gpt_neox_has_names_of_its_own(fields: dict[str, Any], base: float, share: float) -> None:
    found = section({"model_type": "gpt_neox", **fields})
    assert (found["rotary_embedding_base"], found["rotary_percentage"]) == (base, share)


@pytest.mark.parametrize("name", ["longrope", "su", "yarn"])
@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_phi3_calls_longrope_by_three_names_and_has_the_length_beside_it(name: str, key: str) -> None:
    config = {
        "model_type": "phi3",
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 8192,
        "rope_theta": 7.0,
        "rope_scaling": {key: name, **PAIRS},
    }
    found = section(config)
    # The factor is written out: with another sequence_length the model stays the same.
    assert found["rotary"] == {"type": "longrope", "trained_length": 8192, "factor": 16.0, **PAIRS}
    kept = family_of(config).inert(config)
    assert kept["rope_parameters"]["original_max_position_embeddings"] == 8192
    assert "factor" not in kept["rope_parameters"]
    assert "rope_scaling" not in kept
    assert section({"model_type": "phi3", "rope_scaling": {key: name, **PAIRS}})["rotary"]["trained_length"] == 4096


def test_a_given_attention_factor_needs_no_factor() -> None:
    rope = {"rope_type": "longrope", "attention_factor": 1.5, "original_max_position_embeddings": 4096}
    assert (
        "factor"
        not in section({**LLAMA, "rope_parameters": {**rope, **PAIRS, "factor": None}, "head_dim": 96})["rotary"]
    )


def rotary_of_kinds(config: dict[str, Any]) -> dict[str, Any]:
    return {name: kind["rotary"] for name, kind in section(config)["attention_kinds"].items()}


def test_gemma_3_has_a_base_for_sliding_layers_and_scales_full_ones_only() -> None:
    config = {"model_type": "gemma3_text", "sliding_window": 8}
    assert rotary_of_kinds(config) == {
        "sliding": {"type": "default", "base": 10000.0},
        "full": {"type": "default", "base": 1000000.0},
    }
    old = {"rope_theta": 7.0, "rope_local_base_freq": 5.0, "rope_scaling": {"type": "linear", "factor": 8.0}}
    assert rotary_of_kinds({**config, **old}) == {
        "sliding": {"type": "default", "base": 5.0},
        "full": {"type": "linear", "factor": 8.0, "base": 7.0},
    }
    assert rotary_of_kinds({**config, "rope_parameters": {"sliding_attention": None, "full_attention": {}}}) == (
        rotary_of_kinds(config)
    )


def test_olmo_3_gives_the_base_of_old_files_to_full_layers_only() -> None:
    config = {"model_type": "olmo3", "rope_theta": 7.0, "num_hidden_layers": 8}
    assert rotary_of_kinds(config) == {
        "sliding": {"type": "default", "base": 500000.0},
        "full": {"type": "default", "base": 7.0},
    }


def test_a_rotation_is_written_without_what_goes_without_saying() -> None:
    config = {
        **LLAMA,
        "rope_parameters": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 32.0, "beta_slow": 1, "truncate": True},
    }
    family = family_of(config)
    from_section = family.config(architecture_of(config))
    assert from_section["rope_parameters"] == {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 2.0,
        "original_max_position_embeddings": 8192,
    }
    again = family.config(architecture_of(config), family.inert(config))
    assert again["rope_parameters"] == {"rope_theta": 10000.0, **config["rope_parameters"]}


def test_a_family_without_a_share_takes_the_whole_head_only() -> None:
    assert "rotary_percentage" not in section({**LLAMA, "rope_parameters": {"partial_rotary_factor": 1.0}})
    with pytest.raises(ConfigError, match="partial_rotary_factor: is not known for rope_type default"):
        section({**LLAMA, "rope_parameters": {"partial_rotary_factor": 0.5}})
