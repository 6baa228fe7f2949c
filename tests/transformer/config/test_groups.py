"""What training groups take where methods of fine-tuning are configured, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from scaling.core import name_in_layer
from scaling.transformer.config.groups import group_patterns, group_problems, grown_tables
from scaling.transformer.config.model_plan import base_plan_of, plan_of
from scaling.transformer.config.root import TransformerConfig

BASE = {"vocab_size": 64, "hidden_size": 16, "num_layers": 2, "num_attention_heads": 2, "weight_tying": False}
RATE = {"learning_rate_scheduler": {"learning_rate": 0.01}}


def config_of(*groups: dict[str, Any], **methods: Any) -> TransformerConfig:
    sections: dict[str, Any] = {"transformer_architecture": {**BASE, **methods}}
    if groups:
        sections["training_groups"] = [
            {"group_name": f"group {number}", **RATE, **g} for number, g in enumerate(groups)
        ]
    return TransformerConfig.from_dict(sections, quiet=True)


def taken(config: TransformerConfig) -> list[set[str]]:
    """Return what each group takes."""
    architecture = config.transformer_architecture
    names = [parameter.name for parameter in plan_of(architecture).parameters()]
    patterns = group_patterns(config.training_groups, architecture)
    return [{name for name in names if pattern.matches(name_in_layer(name))} for pattern in patterns]


def added(config: TransformerConfig) -> set[str]:
    architecture = config.transformer_architecture
    return {parameter.name for parameter in plan_of(architecture).parameters()} - {
        parameter.name for parameter in base_plan_of(architecture).parameters()
    }


def problems(config: TransformerConfig) -> list[str]:
    return [str(p) for p in group_problems(config.training_groups, config.transformer_architecture, config.training)]


METHODS: dict[str, dict[str, Any]] = {
    "LoRA": {"lora_config": {"name": "a-b", "rank": 2, "bias": True}},
    "IA3": {"ia3_config": {}},
    "adapters": {"adapter_config": {"name": "a", "mlp_downsampling_factor": 0.5}},
    "prompt": {"softprompt_config": {"name": "p", "n_tokens": 2}},
    "rows": {"finetunable_token_ids": [3, 5]},
    "two": {"lora_config": {"rank": 2}, "finetunable_token_ids": [3]},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_group_without_patterns_takes_what_methods_add_and_nothing_of_the_base(method: str) -> None:
    config = config_of({}, **METHODS[method])
    assert taken(config) == [added(config)]
    assert added(config)
    assert problems(config) == []


def test_biases_of_the_base_are_what_bitfit_trains_with_those_it_adds() -> None:
    own = config_of({}, bitfit_bias_config={"name": "b"})
    biases = {name for name in (p.name for p in plan_of(own.transformer_architecture).parameters()) if "bias" in name}
    assert taken(own) == [biases]
    both = config_of({}, attention_bias=False, bitfit_bias_config={"name": "b", "add_to": ["query"]})
    assert added(both) == {f"layers.{n}.self_attention.query.bitfit_b.bias" for n in (1, 2)}
    assert taken(both)[0] > added(both)
    assert "layers.1.mlp.dense_in.bias" in taken(both)[0]


def test_other_adapters_of_a_model_do_not_join_bitfit() -> None:
    """LoRA's own bias is of LoRA."""
    config = config_of({}, lora_config={"rank": 2, "bias": True}, bitfit_bias_config={"name": "b"})
    names = taken(config)[0]
    assert names > added(config)
    assert problems(config) == []


def test_more_of_the_base_is_trained_where_a_group_names_it() -> None:
    config = config_of({"parameters_include": ["norm"]}, {}, **METHODS["LoRA"])
    norms, lora = taken(config)
    assert lora == added(config)
    assert norms
    assert all("norm" in name for name in norms)
    assert problems(config) == []


def test_a_group_that_takes_the_whole_base_is_refused_with_what_took_it() -> None:
    (problem,) = problems(config_of({"parameters_include": ["."]}, **METHODS["LoRA"]))
    assert problem.startswith(
        "training_groups: train every parameter of the base although a method of fine-tuning is configured: group "
        "'group 0' (.) takes all "
    )
    assert problem.endswith(
        "give it narrower patterns (without any a group takes what the method adds), or remove the method"
    )


def test_groups_that_leave_the_methods_out_are_refused_with_what_is_left_out() -> None:
    (problem,) = problems(config_of({"parameters_include": ["norm"]}, **METHODS["LoRA"]))
    assert problem == (
        "training_groups: train nothing of what the methods of fine-tuning add, such as "
        "layers.1.self_attention.dense.lora_a-b.a, layers.1.self_attention.dense.lora_a-b.b, "
        "layers.1.self_attention.dense.lora_a-b.bias and 21 more; remove parameters_include from a group, which then "
        "takes all of it, or remove the method"
    )


def test_a_method_that_does_not_fit_is_said_by_its_own_problem_alone() -> None:
    config = config_of({}, **METHODS["LoRA"])
    wrong = config.transformer_architecture.model_copy(
        update={"lora_config": config_of({}, lora_config={"rank": 2}).transformer_architecture.lora_config}
    )
    assert wrong.lora_config is not None
    broken = wrong.model_copy(update={"lora_config": wrong.lora_config.model_copy(update={"rank": 99})})
    assert list(group_problems(config.training_groups, broken, config.training)) == []


def test_tables_may_have_grown_where_rows_of_tokens_are_trained() -> None:
    assert grown_tables(config_of({}, **METHODS["rows"]).transformer_architecture)
    assert not grown_tables(config_of({}, **METHODS["LoRA"]).transformer_architecture)
