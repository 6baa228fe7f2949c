"""Which family a config.json is of, which can express an architecture, and every refusal of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from scaling.core import ConfigError
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.hf.choose import family_for, family_of, inert
from tests.transformer.hf.in_memory import architecture_of, config_json

EXAMPLE = Path(__file__).parents[3] / "examples/transformer_example/config.yml"


def refusal(config: dict[str, Any]) -> list[str]:
    """Return the problems of a config.json."""
    with pytest.raises(ConfigError) as refused:
        family_of(config, source="models/x/config.json")
    assert refused.value.source == "models/x/config.json"
    return [str(problem) for problem in refused.value.problems]


DROPPED = object()

NONE_GIVEN = "is missing, so the family of the model is unknown; add one of llama, gpt_neox, gpt2, qwen2, qwen3"
KNOWN_TYPES = "default, linear, dynamic, yarn, llama3, longrope"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama", {"model_type": DROPPED}, f"model_type: {NONE_GIVEN}"),
        ("llama", {"model_type": "falcon"}, 'model_type: is "falcon", which is not built; these are: llama, gpt_neox,'),
        ("llama", {"model_type": "lama"}, "did you mean llama?"),
        ("llama", {"model_type": ["llama"]}, 'model_type: is ["llama"], which is not built'),
        ("gemma3_text", {"model_type": "gemma3", "text_config": {}}, "save that alone, and read what was saved"),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "of llama models only LlamaForCausalLM is"),
        ("llama", {"architectures": "LlamaForCausalLM"}, "architectures: is "),
        ("gpt2", {"architectures": ["GPT2Model"]}, "of gpt2 models only GPT2LMHeadModel is built"),
        (
            "llama",
            {"hiden_size": 3},
            "hiden_size: is not known for llama models, and might change what they compute; did",
        ),
        ("llama", {"hiden_size": 3}, "you mean hidden_size? If not, remove it where it does not"),
        (
            "llama",
            {"zzz": 3},
            "zzz: is not known for llama models, and might change what they compute; remove it where",
        ),
        ("llama", {"layer_types": ["full_attention"] * 4}, "layer_types: is not known for llama models"),
        ("llama", {"auto_map": {"AutoModel": "evil.Model"}}, "auto_map: is {"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config: is {"),
        ("llama", {"alibi": True}, "alibi: is true: positions are biases of the scores"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention: is true: tokens see those"),
        ("llama", {"is_encoder_decoder": True}, "is_encoder_decoder: is true: the model is no decoder alone"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention: is true: the model attends to an encoder"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: is true, which is not"),
        ("llama", {"hidden_act": "quick_gelu"}, 'hidden_act: is "quick_gelu", which is not built; built: "silu"'),
        ("llama", {"hidden_act": ["silu"]}, 'hidden_act: is ["silu"], which is not built'),
        ("llama", {"hidden_size": "large"}, 'hidden_size: must be a whole number, not "large"'),
        ("llama", {"num_attention_heads": 0}, "num_attention_heads: must be above 0, not 0"),
        ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers: must be at most 4096, not 1000000000"),
        ("llama", {"rms_norm_eps": None}, "rms_norm_eps: must be a number, not null"),
        ("llama", {"mlp_bias": 1}, "mlp_bias: must be true or false, not 1"),
        ("llama", {"attention_dropout": "0.1"}, 'attention_dropout: must be a number, not "0.1"'),
        (
            "llama",
            {"num_key_value_heads": 3},
            "num_key_value_heads: as transformer_architecture.attention_num_kv_heads",
        ),
        (
            "llama",
            {"head_dim": 15},
            "as transformer_architecture.rotary_percentage, it is 1, which rotates 15 of the 15",
        ),
        (
            "phi3",
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            "rope_parameters: as transformer_architecture.rotary.short_factor, it has 1 numbers",
        ),
        ("llama", {"dtype": "int8"}, "dtype: as transformer_architecture.precision, it must be one of"),
        ("mistral", {"sliding_window": 0}, "sliding_window: must be a whole number of at least 1, or null, not 0"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types: has 1 entries, but num_hidden_layers is 4"),
        (
            "qwen2",
            {"layer_types": ["chunked_attention"] * 4},
            'layer_types.0: is "chunked_attention", which is not built',
        ),
        ("qwen2", {"layer_types": "full"}, 'layer_types: must be a list, not "full"'),
        (
            "qwen2",
            {"use_sliding_window": False},
            "there is no window; set sliding_window, and use_sliding_window to true",
        ),
        ("qwen2", {"use_sliding_window": "yes"}, 'use_sliding_window: must be true or false, not "yes"'),
        ("qwen2", {"max_window_layers": -1}, "max_window_layers: must be a whole number of at least 0, not -1"),
        (
            "smollm3",
            {"no_rope_layers": [1, 2, 0, 1]},
            "no_rope_layers: must have 1 (rotated) or 0 (not) for each of the 4",
        ),
        (
            "smollm3",
            {"no_rope_layer_interval": 0},
            "no_rope_layer_interval: must be a whole number of at least 1, not 0",
        ),
        ("llama", {"rope_parameters": 3}, "rope_parameters: must be a section ({...}), not 3"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "x"}},
            f'rope_type: is "x", which is not built; these are: {KNOWN_TYPES}',
        ),
        ("llama", {"rope_parameters": {"rope_type": ["x"]}}, "rope_parameters.rope_type: is "),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear"}},
            "rope_parameters: has no factor, which rope_type linear",
        ),
        ("llama", {"rope_parameters": {"factor": 2.0}}, "rope_parameters.factor: is not known for rope_type default"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor: is not known for"),
        (
            "llama",
            {"rope_parameters": {"rope_theta": "1e4"}},
            'rope_parameters.rope_theta: must be a number, not "1e4"',
        ),
        ("llama", {"rope_theta": "1e4", "rope_parameters": DROPPED}, 'rope_theta: must be a number, not "1e4"'),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "rope_scaling: is there beside rope_parameters"),
        ("llama", {"rope_interleaved": True}, "rope_interleaved: is true: neighbouring features are rotated together"),
        ("gpt_neox", {"rope_theta": 5.0}, "rope_theta: is 5.0, but the model has 10000.0; give both one value"),
        (
            "phi3",
            {"original_max_position_embeddings": 8},
            "rope_parameters.original_max_position_embeddings: is 16, but",
        ),
        ("gemma3_text", {"rope_parameters": {"rope_type": "default"}}, "rope_parameters.rope_type: is not known: this"),
        (
            "gemma3_text",
            {"rope_parameters": {"full_attention": 3}},
            "rope_parameters.full_attention: must be a section",
        ),
        (
            "gemma3_text",
            {"rope_parameters": DROPPED, "rope_scaling": {"rope_type": "x"}},
            'rope_scaling.rope_type: is "x", which is not built',
        ),
        (
            "gemma3_text",
            {"rope_parameters": {"sliding_attention": {"rope_type": "x"}}},
            'rope_parameters.sliding_attention.rope_type: is "x", which is not built',
        ),
        (
            "gemma3_text",
            {"rope_parameters": DROPPED, "rope_local_base_freq": "low"},
            'rope_local_base_freq: must be a number, not "low"',
        ),
        (
            "olmo3",
            {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}},
            "rope_parameters.full_attention.truncate: is false, which transformers ignores",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_field(name: str, change: dict[str, Any], message: str) -> None:
    config = {**config_json(name), **change}
    first, *_ = refusal({key: value for key, value in config.items() if value is not DROPPED})
    assert message in first


def test_all_problems_come_at_once() -> None:
    config = {
        **config_json("llama"),
        "architectures": ["X"],
        "foo": 1,
        "hidden_size": None,
        "hidden_act": 3,
        "alibi": 1,
    }
    assert [problem.split(":")[0] for problem in refusal(config)] == ["architectures", "foo", "alibi", "hidden_size"]


def test_an_unbounded_number_of_layers_is_refused_before_anything_is_made_of_it() -> None:
    assert len(refusal({**config_json("gemma3_text"), "num_hidden_layers": 10**15})) == 1


def test_inert_fields_are_those_of_the_family() -> None:
    assert inert(config_json("gpt_neox"))["classifier_dropout"] == 0.1


def architecture(**section: Any) -> TransformerArchitectureConfig:
    return TransformerArchitectureConfig.from_dict({"vocab_size": 131, **section})


LLAMA_LIKE = {"norm_type": "rms", "mlp_type": "swiglu", "mlp_bias": False, "attention_bias": False}


def test_the_default_is_a_serial_gpt_neox_and_the_example_a_llama() -> None:
    default = architecture()
    assert family_for(default).model_type == "gpt_neox"
    assert family_for(default).config(default)["use_parallel_residual"] is False
    example = yaml.safe_load(EXAMPLE.read_text())["transformer_architecture"]
    assert family_for(TransformerArchitectureConfig.from_dict(example)).model_type == "llama"


@pytest.mark.parametrize(
    ("section", "model_type"),
    [
        (LLAMA_LIKE, "llama"),
        ({**LLAMA_LIKE, "attention_qkv_bias": True}, "qwen2"),
        ({**LLAMA_LIKE, "key_query_norm": True}, "qwen3"),
        (
            {**LLAMA_LIKE, "attention_kinds": {"near": {"window": 8}}, "attention_pattern": ["near"]},
            "mistral",
        ),
        ({**LLAMA_LIKE, "num_local_attention_heads": 4, "local_attention_window_size": 8}, "mistral"),
        (
            {
                **LLAMA_LIKE,
                "attention_kinds": {"a": {"rotary": {"type": "none"}}, "b": {}},
                "attention_pattern": ["a", "b"],
            },
            "smollm3",
        ),
        ({**LLAMA_LIKE, "residual_scale": 0.5}, "granite"),
        ({**LLAMA_LIKE, "masked_softmax": {"scale": 2.0}}, "granite"),
        ({**LLAMA_LIKE, "rotary_percentage": 0.5}, "phi3"),
        (
            {
                **LLAMA_LIKE,
                "attention_kinds": {"near": {"window": 8, "rotary": {"type": "default", "base": 50.0}}, "far": {}},
                "attention_pattern": ["near", "far"],
                "norm_placement": "post",
                "key_query_norm": "all_heads",
            },
            "olmo3",
        ),
        ({"absolute_positions": 4096, "relative_position_embedding_type": "none"}, "gpt2"),
        ({"dropout_embedding": 0.5, "precision": "bfloat16", "initialization": {"std": 0.1}}, "gpt_neox"),
        ({"attention_qkv_in_one": False}, "gpt_neox"),
    ],
)
def test_the_plainest_family_that_is_exact_is_chosen(section: dict[str, Any], model_type: str) -> None:
    assert family_for(architecture(**section)).model_type == model_type


def test_what_follows_from_other_settings_is_written_out() -> None:
    rounded = architecture(**LLAMA_LIKE, mlp_factor=2.5, mlp_size_multiple_of=96, num_attention_heads=8)
    config = family_for(rounded).config(rounded)
    written = {key: config[key] for key in ("intermediate_size", "head_dim", "num_key_value_heads")}
    assert written == {"intermediate_size": 672, "head_dim": 32, "num_key_value_heads": 8}
    usual = architecture(absolute_positions=4096, relative_position_embedding_type="none")
    assert family_for(usual).config(usual)["n_inner"] is None


def test_an_imported_model_goes_back_to_its_own_family_where_others_could_have_it() -> None:
    plain = {key: value for key, value in config_json("mistral").items() if key != "sliding_window"}
    imported = architecture_of({**plain, "sliding_window": None})
    assert family_for(imported).model_type == "llama"
    assert family_for(imported, model_type="mistral").model_type == "mistral"
    assert family_for(architecture(**LLAMA_LIKE, residual_scale=0.5), model_type="mistral").model_type == "granite"


def test_another_sequence_length_leaves_the_family_unless_the_rotation_depends_on_it() -> None:
    yarn = architecture_of(config_json("llama_yarn"), sequence_length=32)
    assert family_for(yarn).model_type == "llama"
    assert family_for(architecture_of(config_json("gpt2"), sequence_length=32)).model_type == "gpt2"
    longrope = architecture_of(config_json("phi3"), sequence_length=32)
    assert family_for(longrope).config(longrope)["rope_parameters"]["factor"] == 4.0
    with pytest.raises(
        ConfigError, match=r"transformer_architecture\.sequence_length: is 128, but in a llama model 64"
    ):
        family_for(architecture_of(config_json("llama_dynamic"), sequence_length=128))


@pytest.mark.parametrize(
    ("section", "messages"),
    [
        (
            {"relative_position_embedding_type": "rotary_complex"},
            ['relative_position_embedding_type: is "rotary_complex", but in a gpt_neox model "rotary"'],
        ),
        (
            {"activation_function": "squared_relu", "norm_type": "rms"},
            ['mlp_type: is "default", but in a llama model "swiglu"', 'activation_function: is "squared_relu", but'],
        ),
        (
            {"norm_placement": "after_sum", **LLAMA_LIKE},
            ['norm_placement: is "after_sum", but in a llama model "pre"'],
        ),
        ({"causal": False}, ["causal: is false, but in a gpt_neox model true"]),
        ({"mlp_type": "geglu"}, ['mlp_type: is "geglu", but in a gpt_neox model "default"']),
        (
            {"num_local_attention_heads": 4, "local_attention_window_size": 8},
            ["local_attention_window_size: is 8, but in a gpt_neox model null"],
        ),
        (
            {
                "attention_kinds": {"near": {"window": 8}, "far": {"rotary": {"type": "none"}}},
                "attention_pattern": ["near", "far"],
            },
            [
                "attention_kinds.*.window: is 8, but in a gpt_neox model null",
                'attention_kinds.*.rotary: is {"type": "none"}, but in a gpt_neox model {"type": "default"',
            ],
        ),
        ({"lm_head": False}, ["lm_head: is false, but in a gpt_neox model true"]),
        (
            {"attention_score_cap": 5.0, "lm_head_bias": True},
            ["attention_score_cap: is 5.0, but in a gpt_neox model null", "lm_head_bias: is true, but"],
        ),
        (
            {"attention_kinds": {"a": {}, "b": {"rotary": {"type": "none"}}}, "attention_pattern": ["a", "a", "b"]},
            ['attention_kinds.*.rotary: is {"type": "none"}, but in a gpt_neox model {"type": "default"'],
        ),
        (
            {"num_local_attention_heads": 2, "local_attention_window_size": 8},
            ["num_local_attention_heads: is 2, but", "local_attention_window_size: is 8, but"],
        ),
    ],
)
def test_an_architecture_without_a_family_is_refused_with_what_is_in_the_way(
    section: dict[str, Any], messages: list[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        family_for(architecture(**section))
    first, *others = (str(problem) for problem in refused.value.problems)
    assert first.startswith("no family of Hugging Face models that is built can express this architecture (llama, ")
    assert len(others) == len(messages)
    for other, message in zip(others, messages, strict=True):
        assert other.startswith(f"transformer_architecture.{message}")
