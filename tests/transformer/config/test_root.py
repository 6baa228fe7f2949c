"""Configurations of every accepted form load, describe themselves and come back unchanged."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaling.core.config.base import BaseConfig
from scaling.core.config.explain import sections_of
from scaling.core.config.family import ConfigFamily
from scaling.core.config.fields import ConfigWarning, NoEffect, SetByLauncher, Unavailable, marker
from scaling.core.config.template_text import template
from scaling.core.errors import ConfigError, Problem
from scaling.core.nn.config import MaskedSoftmaxKernel, NormType
from scaling.core.optimizer.lr_schedule import LearningRateDecayStyle
from scaling.core.topology.config import ActivationCheckpointingType
from scaling.transformer.config import Precision, TransformerConfig
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.plan.attention import AttentionPlan
from scaling.transformer.plan.parts import FeedForwardPlan

PREDECESSOR = """
// as written for the predecessor
{
    "version": "1",
    "runner": {
        "runner_type": "pdsh",
        "hostfile": "hosts.txt",
        "hosts": null,
        "master_port": 29500,
        "master_addr": null,
        "script": "train.py",
        "default_gpu_count": 8,
        "docker_config": {"docker_container": null, "docker_sudo": false, "docker_mounts": [["/mnt/", "/mnt/"]]},
        "use_determined": false
    },
    "logger": {
        "log_level": "info", "log_dir": "logs", "metrics_ranks": null, "use_wandb": false, "wandb_ranks": null,
        "wandb_host": "https://api.wandb.ai", "wandb_team": "team", "wandb_project": "project", "wandb_group": "debug",
        "wandb_api_key": null, "use_tensorboard": true, "determined_metrics_ranks": null,
        "tensorboard_ranks": {"pipe_parallel_rank": -0, "data_parallel_rank": 0, "model_parallel_rank": null},
    },
    "topology": {
        "global_rank": null, "world_size": 8, "local_slot": null, "model_parallel_size": 2, "pipe_parallel_size": 2,
        "data_parallel_size": null, "global_batch_size": 64, "micro_batch_size": 4, "gradient_accumulation_steps": null,
        "pipe_partition_method": "balanced", "pipe_partition_overwrite": null,
        "activation_checkpointing_type": "every_layer", "sequence_parallel": true
    },
    "optimizer": {
        "method": "adamw", "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "gradient_clipping": 1, "zero": true,
        "allreduce_bucket_size": 500000000, "zero_save_static": false, "debug_log": false,
        "loss_scaler": {"enable": false, "initial_scale": 4294967296, "window": 1000, "hysteresis": 2.0,
                        "consecutive_hysteresis": false, "min_scale": 1.0, "factor": 2.0},
    },
    "training": {
        "allow_missing_params_in_optimizer": false, "use_deterministic_torch_algorithms": false,
        "loss_function_config": {"loss_type": "cross_entropy_loss"}
    },
    "training_groups": [{
        "group_name": "weights", "parameters_include": null, "parameters_exclude": ["bias", "norm"],
        "weight_decay": 0.1, "independent_weight_decay": false,
        "learning_rate_scheduler": {
            "learning_rate": 6e-4, "learning_rate_minimum": 6e-5, "learning_rate_decay_iters": 1000,
            "learning_rate_warmup_steps": 10, "learning_rate_warmup_delay_steps": 0
        }
    }, {"group_name": "others", "parameters_include": ["bias", "norm"], "weight_decay": 0}],
    "trainer": {
        "save_dir": "checkpoints", "save_interval": 100, "load_dir": null, "train_iterations": 1000,
        "assert_checkpoint_loaded": false, "load_optimizer_states": true, "delete_past_optimizer_states": false,
        "load_context": true, "allowed_missing_keys_in_checkpoint": ["x"],
        "allowed_unexpected_keys_in_checkpoint": null, "ignore_keys_in_checkpoint": null,
        "merge_lora_after_loading_checkpoint": false, "seed": 42, "dataloader_num_workers": 1,
        "dataloader_pin_memory": true, "dataloader_prefetch_factor": null, "eval_iterations": 1,
        "eval_interval": 100, "separate_file_for_parameters": null, "tensor_statistics_recorder_config": null
    },
    "profiler": {"profile_steps": 2, "profile_start_at_step": 10, "profiler_output": "profile.json"},
    "luminous_architecture": {
        "vocab_size": 65536, "vocab_file": "vocab.json", "hidden_size": 512, "num_layers": 8,
        "num_attention_heads": 8, "num_local_attention_heads": 0, "local_attention_window_size": null,
        "rotary_embedding_base": 10000, "rotary_percentage": 1.0, "sequence_length": 1024, "norm_type": "rms",
        "relative_position_embedding_type": "rotary_complex", "mlp_type": "swiglu", "mlp_factor": 2.6875,
        "attention_bias": false, "attention_qkv_in_one": false, "attention_num_kv_heads": 2,
        "attention_use_matmul": false, "reset_attention_mask": true, "reset_position_ids": true, "mlp_bias": false,
        "key_query_norm": false, "weight_tying": false,
        "masked_softmax": {"kernel": "flash_attention", "softmax_in_fp32": true, "scale": 1.0,
                           "deterministic_flash_attn_bwd": false},
        "layernorm": {"optimization_type": "torch", "layernorm_epsilon": 1e-5}, "precision": "bfloat16",
        "fp8_config_attention": null, "fp8_config_attention_dense_out": null, "fp8_config_mlp": null,
        "fp8_config_mlp_dense_out": null, "fp8_config_lm_head": null, "dropout_embedding": 0.0,
        "dropout_attention_probs": 0.0, "dropout_after_attention": 0.0, "dropout_after_mlp": 0.0,
        "bitfit_bias_config": null, "finetunable_token_ids": [], "image_encoder": false,
        "dropout_image_encoder": 0.0, "softprompt_config": null, "adapter_config": null, "lora_config": null,
        "embedding_head_config": null, "lm_head": true, "causal": true,
        "umup": {"enable": false, "allow_non_umup_params": false, "normalize_depth_to_num_layers": false,
                 "attn_mult": 1.0, "act_mult": 1.0, "residual_mult": 1.0, "residual_attn_ratio": 1.0,
                 "loss_mult": 1.0}
    },
    "data": {
        "legacy_dataset": true, "load_mmap_index_to_memory": false, "use_mmap": true,
        "load_data_item_mmap_index_to_memory": false, "finetuning_dataset": false, "finetuning_chat_dataset": false,
        "finetuning_dataset_memory_map": false, "embedding_dataset": false, "embedding_dataset_memory_map": false,
        "data_prefixes": ["a", "b"], "validation_data_prefixes": ["c"],
        "blended_dataset": {"weight_by_num_documents": true, "weighted_sampler_alpha": 1.0, "weights": null,
                            "weight_examples_proportional": false, "ep_maximum": null, "ep_temperature": 1.0,
                            "minimum_dataset_size": 0, "cache_directory": null, "shuffle_dataset_indices": false,
                            "load_dataset_indices_to_memory": false},
        "only_full_sequences": false, "allow_incomplete_sequences_every_n": 0
    },
    "determined_experiment_id": null,
    "determined_trial_id": null, # the end
}
"""


def sections(section: type[BaseConfig] = TransformerConfig) -> Iterator[type[BaseConfig]]:
    yield section
    for field in section.model_fields.values():
        for inner in sections_of(field.annotation):
            assert issubclass(inner, BaseConfig)
            yield from sections(inner)
    if issubclass(section, ConfigFamily) and section.kind_key not in section.model_fields:
        yield from section.members().values()


def sizes(architecture: TransformerArchitectureConfig) -> dict[str, int]:
    """Return what the keys of a section lead to."""
    plan = plan_of(architecture)
    (attention,), (feed_forward,) = plan.parts(AttentionPlan), plan.parts(FeedForwardPlan)
    return {
        "head_size": attention.head_size,
        "kv_heads": attention.kv_heads,
        "rotated": 0 if attention.rotation is None else attention.rotation.dimensions,
        "width": feed_forward.width,
        "layers": plan.num_layers,
    }


def test_a_configuration_of_the_predecessor_loads() -> None:
    config = TransformerConfig.from_str(PREDECESSOR)
    assert (config.topology.data_parallel_size, config.topology.gradient_accumulation_steps) == (2, 8)
    assert config.topology.activation_checkpointing_type is ActivationCheckpointingType.EVERY_LAYER
    assert config.runner.hostsfile == Path("hosts.txt")
    weights, others = config.training_groups
    assert weights.learning_rate_scheduler.learning_rate_decay_style is LearningRateDecayStyle.COSINE
    assert others.weight_decay == 0
    architecture = config.transformer_architecture
    assert sizes(architecture) == {"head_size": 64, "kv_heads": 2, "rotated": 64, "width": 1376, "layers": 11}
    assert architecture.norm_type is NormType.RMS
    assert TransformerConfig.from_str(config.to_yaml()) == config


def test_what_no_longer_does_anything_is_accepted_with_a_reason() -> None:
    values = {
        "determined_trial_id": 3,
        "runner": {"use_determined": True},
        "logger": {"wandb_api_key": "c4n4ry", "determined_metrics_ranks": [0]},
        "optimizer": {"zero_save_static": True},
        "trainer": {"separate_file_for_parameters": ["x"]},
        "luminous_architecture": {"attention_use_matmul": True, "umup": {"attn_mult": 2.0}},
        "data": {"load_data_item_mmap_index_to_memory": True, "blended_dataset": {"cache_directory": "x"}},
    }
    with pytest.warns(ConfigWarning) as caught:
        config = TransformerConfig.from_dict(values)
    assert sorted(str(warning.message).split(":")[0] for warning in caught) == [
        "data.blended_dataset.cache_directory",
        "data.load_data_item_mmap_index_to_memory",
        "determined_trial_id",
        "logger.determined_metrics_ranks",
        "logger.wandb_api_key",
        "optimizer.zero_save_static",
        "runner.use_determined",
        "trainer.separate_file_for_parameters",
        "transformer_architecture.attention_use_matmul",
        "transformer_architecture.umup.attn_mult",
    ]
    assert config == TransformerConfig()
    assert "c4n4ry" not in "".join([*(str(warning.message) for warning in caught), repr(config), config.to_yaml()])


def test_a_key_in_the_file_is_never_shown_by_an_error() -> None:
    with pytest.raises(ConfigError) as raised:
        TransformerConfig.from_dict({"logger": {"wandb_api_key": ["c4n4ry"], "log_level": "loud"}})
    assert str(raised.value).startswith("logger.log_level: must be one of debug,")
    with pytest.raises(ConfigError) as raised:
        TransformerConfig.from_dict({"logger": [{"wandb_api_key": "c4n4ry"}]})
    assert str(raised.value) == "logger: must be a section (KEY: VALUE lines), not [a section]"


def test_the_documented_forms_load_as_they_stand() -> None:
    softmax = """{"transformer_architecture": {"masked_softmax": {"kernel": "flash_attention", "softmax_in_fp32": true,
        "deterministic_flash_attn_bwd": false, "scale": 1.0}}}"""
    assert (
        TransformerConfig.from_str(softmax).transformer_architecture.masked_softmax.kernel
        is MaskedSoftmaxKernel.FLASH_ATTENTION
    )
    sizes = '{"topology": {"model_parallel_size": 1, "pipe_parallel_size": 1, "data_parallel_size": 1}}'
    assert TransformerConfig.from_str(sizes) == TransformerConfig.from_str("") == TransformerConfig()


def test_a_learning_rate_without_groups_is_one_group_of_all_parameters() -> None:
    scheduler = {"learning_rate": 0.1, "learning_rate_decay_iters": 9}
    short = TransformerConfig.from_dict({"learning_rate_scheduler": scheduler})
    group = {"group_name": "all", "learning_rate_scheduler": scheduler}
    assert short == TransformerConfig.from_dict({"training_groups": [group]})
    assert TransformerConfig.from_str(short.to_yaml()) == short
    assert [group.group_name for group in TransformerConfig().training_groups] == ["all"]


def test_problems_of_the_short_form_are_named_where_they_were_written() -> None:
    with pytest.raises(ConfigError, match=r"^learning_rate_scheduler\.learning_rate: must be a number of at least 0"):
        TransformerConfig.from_dict({"learning_rate_scheduler": {"learning_rate": -1}})


def test_overrides_reach_into_groups_and_earlier_names() -> None:
    values = {"luminous_architecture": {"num_layers": 2}, "training_groups": [{"group_name": "a"}]}
    overrides = ["transformer_architecture.num_layers=3", "training_groups.0.weight_decay=0.1", "trainer.seed=1e3"]
    config = TransformerConfig.from_dict(values, overrides)
    assert config.transformer_architecture.num_layers == 3
    assert config.training_groups[0].weight_decay == 0.1
    assert config.trainer.seed == 1000


def test_the_template_loads_as_the_defaults() -> None:
    assert TransformerConfig.from_str(template(TransformerConfig())) == TransformerConfig()


@pytest.mark.parametrize("section", sorted({*sections()}, key=str))
def test_every_section_and_every_key_is_described(section: type[BaseConfig]) -> None:
    texts = {name: field.description or "" for name, field in section.model_fields.items()}
    assert {name: text for name, text in texts.items() if not text.rstrip().endswith(".")} == {}
    assert (section.__doc__ or "").strip()


def test_every_key_that_can_be_null_says_what_null_means() -> None:
    silent = [
        f"{section.__name__}.{name}"
        for section in {*sections()}
        for name, field in section.model_fields.items()
        if field.default is None and "null" not in (field.description or "")
        if not any(marker(field, kind) for kind in (NoEffect, SetByLauncher, Unavailable))
    ]
    assert silent == []


def test_a_process_gets_its_place_in_the_topology() -> None:
    config = TransformerConfig.from_dict(
        {"topology": {"world_size": 4, "model_parallel_size": 2, "pipe_parallel_size": 1}}
    )
    assert config.with_launch(3, 4, 1).topology.global_rank == 3
    with pytest.raises(ConfigError, match="the launcher started 2 processes"):
        config.with_launch(0, 2, 0)
    with pytest.raises(ConfigError, match=r"this process is alone, but .* = 4; start 4 with torchrun or srun, or set"):
        config.with_launch(0, 1, 0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {"head_size": 64, "kv_heads": 4, "rotated": 64, "width": 1024, "layers": 7}),
        ({"rotary_percentage": 0.5, "attention_num_kv_heads": 2}, {"rotated": 32, "kv_heads": 2}),
        ({"relative_position_embedding_type": "none"}, {"rotated": 0}),
        ({"mlp_factor": 2.6666666666666665, "hidden_size": 768}, {"width": 2048}),
        ({"lm_head": False, "num_layers": 1}, {"layers": 3}),
    ],
)
def test_sizes_follow_from_the_architecture(values: dict[str, Any], expected: dict[str, Any]) -> None:
    assert expected.items() <= sizes(TransformerArchitectureConfig.from_dict(values)).items()


@pytest.mark.parametrize(("mlp_type", "activation", "gated"), [("default", "gelu", False), ("swiglu", "silu", True)])
def test_the_kind_of_feed_forward_is_the_one_that_is_named(mlp_type: str, activation: str, gated: bool) -> None:
    plan = plan_of(TransformerArchitectureConfig.from_dict({"mlp_type": mlp_type}))
    (feed_forward,) = plan.parts(FeedForwardPlan)
    assert (feed_forward.activation, feed_forward.gated) == (activation, gated)


@pytest.mark.parametrize(("kv_heads", "fused"), [(4, False), (None, True)])
def test_query_key_and_value_are_fused_where_they_have_the_same_heads(kv_heads: int | None, fused: bool) -> None:
    architecture = TransformerArchitectureConfig.from_dict({"attention_num_kv_heads": kv_heads})
    assert architecture.attention_qkv_in_one == fused


def test_checking_a_configuration_does_not_import_torch() -> None:
    script = "import sys, scaling.transformer.config.root; print('torch' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert finished.stdout == "False\n"


def test_precisions_are_those_of_pytorch() -> None:
    import torch

    assert [precision.dtype for precision in Precision] == [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def guesses(section: type[BaseConfig]) -> st.SearchStrategy[Any]:
    """Data shaped like a section, with values of any kind, now and then the right one."""
    scalar = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 20),
        st.sampled_from([2**31, 2**62, 2**70, 10**400]),
        st.floats(),
        st.sampled_from(
            ["", "a", "(", "cosine", "wsd", "rms", "none", "interleaved_1f1b", "float16", "contrastive_loss"]
        ),
    )
    anything = st.recursive(scalar, lambda inner: st.lists(inner, max_size=3), max_leaves=4)
    nested = {
        name: [inner for inner in sections_of(field.annotation) if issubclass(inner, BaseConfig)]
        for name, field in section.model_fields.items()
    }
    inner = {
        name: st.one_of(*map(guesses, inners), st.lists(guesses(inners[0]), max_size=2))
        for name, inners in nested.items()
        if inners
    }
    keys = {**dict.fromkeys([*section.model_fields, "unknown"], anything), **inner}
    return st.one_of(
        st.fixed_dictionaries({}, optional=keys), *([anything] if section is not TransformerConfig else [])
    )


@given(guesses(TransformerConfig))
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
def test_any_data_is_either_a_configuration_or_named_problems(values: dict[str, Any]) -> None:
    try:
        config = TransformerConfig.from_dict(values, quiet=True)
    except ConfigError as error:
        problems = error.problems
    else:
        problems = (Problem("", "none"),)
        assert TransformerConfig.from_str(config.to_yaml()) == config
    assert problems
    assert all(problem.message for problem in problems)
