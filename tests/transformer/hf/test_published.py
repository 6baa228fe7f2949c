"""What lies on the hub is read, whatever odd fields it holds, and what is not built is refused for what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scaling.core import ConfigError
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.hf.choose import family_of

PUBLISHED: dict[str, Any] = json.loads(Path(__file__).with_name("published.json").read_text())
"""By name the number of parameters, and config.json as it lies on the hub with all its odd fields."""

MOVED = {
    *("auto_map", "transformers_version", "torch_dtype", "rope_theta", "rope_scaling", "rope_local_base_freq"),
    *("rotary_emb_base", "rotary_pct"),
}
"""Fields of former schemas, and the programs that wrote a file or once read it."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_its_number_of_parameters_and_is_written_as_it_was(name: str) -> None:
    config = PUBLISHED[name]["config"]
    family = family_of(config)
    architecture = TransformerArchitectureConfig.from_dict(family.section(config))
    assert plan_of(architecture).num_parameters == PUBLISHED[name]["parameters"]
    said = family.config(architecture, family.inert(config))
    assert plan_of(TransformerArchitectureConfig.from_dict(family.section(said))) == plan_of(architecture)
    lost = {
        name: value
        for name, value in config.items()
        if said.get(name, value) != value or (name not in said and name not in MOVED)
    }
    assert not lost


def test_odd_settings_are_read_for_what_they_mean() -> None:
    """What `transformers` computes of these files, where a name alone misleads."""

    def section(name: str) -> dict[str, Any]:
        config = PUBLISHED[name]["config"]
        return family_of(config).section(config)

    assert "attention_kinds" not in section("Qwen2-0.5B")  # a window, but not switched on
    assert section("Mistral-7B-v0.1")["attention_kinds"] == {"sliding": {"window": 4096}}
    assert section("deepseek-coder-6.7b-base")["rotary"] == {"type": "linear", "factor": 4.0}
    assert section("gemma-2-27b")["attention_score_scale"] == 144**-0.5
    assert "attention_score_scale" not in section("gemma-2-9b")
    assert section("SmolLM3-3B")["attention_pattern"] == ["full", "full", "full", "full_no_rotary"]
    assert section("gpt-neox-20b")["activation_function"] == "gelu_tanh"
    assert section("Phi-4-mini-instruct")["rotary_percentage"] == 0.75
    assert section("Phi-3.5-mini-instruct")["rotary"]["trained_length"] == 4096
    assert section("Phi-3.5-mini-instruct")["rotary"]["factor"] == 32.0
    olmo3 = section("Olmo-3-1025-7B")
    assert olmo3["attention_pattern"] == ["sliding", "sliding", "sliding", "full"]
    assert olmo3["attention_kinds"]["full"]["rotary"]["type"] == "yarn"
    assert olmo3["attention_kinds"]["sliding"]["rotary"] == {"type": "default", "base": 500000.0}
    granite = section("granite-3.3-8b-instruct")
    assert [granite[key] for key in ("attention_score_scale", "logit_scale", "residual_scale", "embedding_scale")] == [
        0.0078125,
        1 / 16,
        0.22,
        12.0,
    ]


def changed(name: str, **fields: Any) -> dict[str, Any]:
    return {**PUBLISHED[name]["config"], **fields}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            changed(
                "Qwen2.5-7B-Instruct",
                dual_chunk_attention_config={"chunk_size": 262144, "local_size": 8192},
                max_position_embeddings=1010000,
            ),
            "dual_chunk_attention_config: is {",
        ),
        (changed("phi-4", attention_bias=True), "attention_bias: is true: there are biases; this is not built"),
        (changed("Phi-4-mini-instruct", full_attn_mod=2), "full_attn_mod: is 2: not all layers attend alike; this"),
        (
            changed("phi-4", auto_map={"AutoModelForCausalLM": "modeling_phi3.Phi3SmallForCausalLM"}),
            "auto_map: is {",
        ),
        (changed("phi-4", auto_map=["modeling_phi3.Phi3ForCausalLM"]), "auto_map: is ["),
        (changed("Llama-2-7b-hf", rope_theta=0), "rope_theta: as transformer_architecture.rotary_embedding_base, it"),
        (changed("pythia-160m", rotary_pct=0), "rotary_pct: as transformer_architecture.rotary_percentage, it"),
        (changed("gpt2", n_inner=0), "n_inner: must be above 0, not 0"),
        (changed("gpt2", n_positions=0), "n_positions: must be above 0, not 0"),
        (
            changed("Phi-3.5-mini-instruct", original_max_position_embeddings=0),
            "rope_scaling.original_max_position_embeddings: must be above 0, not 0",
        ),
        (
            changed("Phi-3.5-mini-instruct", rope_scaling={"type": "su", "short_factor": [0], "long_factor": [1.0]}),
            "rope_scaling.short_factor: must be a list of numbers above 0, but holds 0",
        ),
        (changed("gemma-3-1b-it", sliding_window_pattern=0), "sliding_window_pattern: must be a whole number of at"),
        (changed("gemma-3-1b-it", query_pre_attn_scalar=0), "query_pre_attn_scalar: must be above 0, not 0"),
        (changed("gemma-3-1b-it", query_pre_attn_scalar=-1), "query_pre_attn_scalar: must be above 0, not -1"),
        (
            changed("gemma-3-1b-it", rope_local_base_freq=0),
            "rope_theta: as transformer_architecture.attention_kinds.sliding.rotary",
        ),
        (changed("gemma-3-1b-it", sliding_window=2**80), "sliding_window: must be at most 9007199254740992, not"),
        (changed("gemma-3-270m", layer_types=["x"] * 18), 'layer_types.0: is "x", which is not built'),
        (changed("Llama-2-7b-hf", **{"a\x1b[31m": 1}), '"a\\u001b[31m": is not known for llama models'),
        (
            {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]},
            'model_type: is "mixtral", which is not built; these are: llama, ',
        ),
        (changed("Llama-2-7b-hf", partial_rotary_factor=0.5), "partial_rotary_factor: is 0.5: models of this type"),
    ],
)
def test_a_look_alike_that_is_another_model_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        family_of(config)
    (problem,) = refused.value.problems
    assert str(problem).startswith(message)
    assert "did you mean" not in str(problem)


def test_whole_numbers_may_be_written_as_others_are() -> None:
    config = changed("Mistral-7B-v0.1", num_hidden_layers=32.0, sliding_window=4096.0, hidden_size=4096.0)
    architecture = TransformerArchitectureConfig.from_dict(family_of(config).section(config))
    assert plan_of(architecture).num_parameters == PUBLISHED["Mistral-7B-v0.1"]["parameters"]


def test_many_unknown_fields_are_counted() -> None:
    with pytest.raises(ConfigError) as refused:
        family_of(changed("Llama-2-7b-hf", **{f"field_{number}": 1 for number in range(100_000)}))
    assert len(refused.value.problems) == 21
    assert "99980 more fields are not known for llama models" in str(refused.value)
