"""Every problem a configuration can have is shown here, word for word; nothing the checks can say is missing."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scaling.core.config import patterns
from scaling.core.config.base import BaseConfig
from scaling.core.config.yaml_text import parse_value
from scaling.core.data import config as data
from scaling.core.errors import ConfigError, Problem
from scaling.core.finetuning import config as low_rank
from scaling.core.logging import config as logging
from scaling.core.nn import config as nn
from scaling.core.optimizer import config as optimizer
from scaling.core.runner import config as runner
from scaling.core.trainer import config as trainer
from scaling.transformer.config import (
    architecture,
    attention_kinds,
    checks,
    finetuning,
    methods,
    record_checks,
    records,
    training,
)
from scaling.transformer.config import data as texts
from scaling.transformer.config.root import TransformerConfig
from tests.transformer.config.architecture_problems import ARCHITECTURE_PROBLEMS
from tests.transformer.config.finetuning_problems import FINETUNING_PROBLEMS
from tests.transformer.config.runner_problems import RUNNER_PROBLEMS

MODULES: tuple[ModuleType, ...] = (
    *(patterns, data, logging, low_rank, nn, optimizer, runner, trainer),
    *(architecture, attention_kinds, checks, finetuning, methods, record_checks, records, texts, training),
)
"""Every module with checks, except those that tests of their own show completely: topology, learning rate, groups."""

SIZES = "model_parallel_size: 1, pipe_parallel_size: 1, data_parallel_size: 1"

PROBLEMS = [
    *ARCHITECTURE_PROBLEMS,
    *FINETUNING_PROBLEMS,
    *RUNNER_PROBLEMS,
    (
        "{topology: {model_parallel_size: 2, pipe_parallel_size: 1, data_parallel_size: 1}, transformer_architecture: "
        "{hidden_size: 96, num_attention_heads: 12, attention_num_kv_heads: 2, mlp_factor: 1.0, sequence_length: 16, "
        "fp8_config_attention: {}, fp8_config_mlp_dense_out: {}}}",
        "transformer_architecture: has fp8_config sections, but each process has 8 outputs of key and 8 outputs of "
        "value, which must be multiples of 16; change them or topology.model_parallel_size, or remove the sections of "
        "these layers",
    ),
    (
        "transformer_architecture: {hidden_size: 96, num_attention_heads: 6, sequence_length: 15, fp8_config_mlp: {}}",
        "topology.micro_batch_size: is 2, which makes micro-batches of 30 tokens, but 8-bit gradients of weights need "
        "a multiple of 16; change it, or set dtypes_grad_weight of the fp8_config to null",
    ),
    (
        "transformer_architecture: {dropout_after_mlp: 1.5}",
        "transformer_architecture.dropout_after_mlp: must be a number of at least 0 and of at most 1, not 1.5",
    ),
    (
        "transformer_architecture: {num_layers: 0}",
        "transformer_architecture.num_layers: must be a whole number of at least 1, not 0",
    ),
    # between sections
    (
        "{topology: {model_parallel_size: 3, pipe_parallel_size: 1, data_parallel_size: 1},"
        " transformer_architecture: {mlp_factor: 3}}",
        "transformer_architecture.num_attention_heads: is 4, but must be divisible by topology.model_parallel_size "
        "(3); set topology.model_parallel_size to 1 or 2",
    ),
    (
        "{topology: {model_parallel_size: 4, pipe_parallel_size: 1, data_parallel_size: 1},"
        " transformer_architecture: {num_attention_heads: 24, hidden_size: 48, attention_num_kv_heads: 6}}",
        "transformer_architecture.attention_num_kv_heads: is 6, but must be a multiple of topology.model_parallel_size "
        "(4), or divide it; set either to 2",
    ),
    (
        "{topology: {model_parallel_size: 4, pipe_parallel_size: 1, data_parallel_size: 1},"
        " transformer_architecture: {mlp_factor: 1.0078125}}",
        "transformer_architecture.mlp_factor: is 1.00781, but times hidden_size (256) = 258 must be divisible by "
        "topology.model_parallel_size (4); set topology.model_parallel_size to 1 or 2",
    ),
    (
        "{topology: {model_parallel_size: 4, pipe_parallel_size: 1, data_parallel_size: 1, sequence_parallel: true},"
        " transformer_architecture: {sequence_length: 1023}}",
        "transformer_architecture.sequence_length: is 1023, but must be divisible by topology.model_parallel_size (4) "
        "with topology.sequence_parallel; the nearest that is: 1024",
    ),
    (
        "{topology: {model_parallel_size: 1, pipe_parallel_size: 4, data_parallel_size: 1, pipe_chunks_per_rank: 2,"
        " pipe_schedule: interleaved_1f1b, micro_batch_size: 1, gradient_accumulation_steps: 4}}",
        "topology.pipe_parallel_size: is 4, with pipe_chunks_per_rank 2 that is 8 stages, but there are 7 layers "
        "(embedding, 4 transformer layers, norm, head); use at most 7 stages, or raise "
        "transformer_architecture.num_layers",
    ),
    (
        f"topology: {{{SIZES}, pipe_partition_overwrite: [0, 6]}}",
        "topology.pipe_partition_overwrite: ends with 6, but the model has 7 layers (embedding, 4 transformer layers, "
        "norm, head); end with 7",
    ),
    (
        "optimizer: {eps: 1.0e-50}",
        "optimizer.eps: is 1e-50, which is zero in float32, so that weights without a gradient become nan; set it to "
        "1e-8, say",
    ),
    (
        "optimizer: {exp_avg_dtype: bfloat16, exp_avg_sq_dtype: bfloat16, beta2: 0.999}",
        "optimizer.exp_avg_sq_dtype: is bfloat16, in which a mean with beta2 0.999 hardly moves, because steps of less "
        "than 2^-8 of it are rounded away; set it to float32, or beta2 to 0.992 or less",
    ),
    (
        "{optimizer: {loss_scaler: {enable: false}}, transformer_architecture: {precision: float16}}",
        "optimizer.loss_scaler.enable: is false, but float16 gradients vanish without loss scaling; remove it, or set "
        "transformer_architecture.precision to bfloat16",
    ),
    (
        "transformer_architecture: {lm_head: false}",
        "transformer_architecture.lm_head: is false, but cross entropy needs it; set it to true",
    ),
    (
        "{transformer_architecture: {vocab_size: 100}, data: {eod_token_id: 100}}",
        "data.eod_token_id: is 100, outside the vocabulary of transformer_architecture.vocab_size (100); use 0 to 99",
    ),
    (
        "{transformer_architecture: {vocab_file: v.json}, data: {corpus: python_stdlib}}",
        "transformer_architecture.vocab_file: is 'v.json', but data.corpus (python_stdlib) has a tokenizer of its own; "
        "remove one",
    ),
    (
        "{learning_rate_scheduler: {}, training_groups: [{group_name: a}]}",
        "learning_rate_scheduler: is the short form for a single group, but training_groups has 1; remove it, or move "
        "it into the groups",
    ),
    (
        "training_groups: [{group_name: a, parameters_include: [norm]}, {group_name: a, parameters_exclude: [norm]}]",
        "training_groups.1.group_name: 'a' is the name of training_groups.0 too; choose another",
    ),
    # training and its groups
    (
        "training: {loss_function_config: {loss_type: contrastive_loss}}",
        "training.loss_function_config.loss_type: contrastive_loss is not available in this version; use "
        "cross_entropy_loss",
    ),
    (
        "training_groups: [{group_name: a, parameters_include: ['(']}]",
        "training_groups.0.parameters_include.0: is '(', which is not a regular expression: missing ), unterminated "
        "subpattern at position 0",
    ),
    (
        "training_groups: [{group_name: a, parameters_exclude: ['*']}]",
        "training_groups.0.parameters_exclude.0: is '*', which is not a regular expression: nothing to repeat at "
        "position 0",
    ),
    (
        "training_groups: [{group_name: a, parameters_include: [x, y], parameters_exclude: [y]}]",
        "training_groups.0.parameters_exclude: has 'y', which parameters_include has too; remove one",
    ),
    (
        "training_groups: "
        "[{group_name: a, independent_weight_decay: true, learning_rate_scheduler: {learning_rate: 0}}]",
        "training_groups.0.independent_weight_decay: divides by the peak learning rate, which is 0; set learning_rate, "
        "or independent_weight_decay to false",
    ),
    (
        "training_groups: [{group_name: ''}]",
        "training_groups.0.group_name: must be text that is not empty, not ''",
    ),
    (
        "transformer_architecture: {mlp_factor: 1.0e+308}",
        "transformer_architecture.mlp_factor: must be a number greater than 0 and of at most 1000000.0, not 1e+308",
    ),
    (
        "topology: {process_group_timeout_seconds: 1.0e+10}",
        "topology.process_group_timeout_seconds: must be a number greater than 0 and of at most 1000000000.0, not "
        "10000000000.0",
    ),
    # optimizer
    (
        "optimizer: {loss_scaler: {min_scale: 8, initial_scale: 4}}",
        "optimizer.loss_scaler.min_scale: is 8, above initial_scale (4); lower it",
    ),
    ("optimizer: {eps: 0}", "optimizer.eps: must be a number greater than 0, not 0"),
    ("optimizer: {method: adam}", "optimizer.method: must be adamw, not 'adam'; did you mean adamw?"),
    # trainer
    (
        "trainer: {ignore_keys_in_checkpoint: [a, '[']}",
        "trainer.ignore_keys_in_checkpoint.1: is '[', which is not a regular expression: unterminated character set at "
        "position 0",
    ),
    # logger
    ("logger: {wandb_ranks: [0, -1]}", "logger.wandb_ranks.1: is -1; ranks start at 0"),
    (
        "logger: {tensorboard_ranks: {pipe_parallel_rank: -1}}",
        "logger.tensorboard_ranks.pipe_parallel_rank: must be a whole number of at least 0, or null, not -1",
    ),
    # data
    ("data: {data_prefixes: []}", "data.data_prefixes: is empty; name token data sets, or set corpus to python_stdlib"),
    (
        "data: {corpus: python_stdlib, data_prefixes: [a]}",
        "data.data_prefixes: and corpus (python_stdlib) are both given; remove one",
    ),
    (
        "data: {corpus: python_stdlib, legacy_dataset: true}",
        "data.legacy_dataset: is true, but corpus (python_stdlib) is no .bin/.idx; remove one",
    ),
    (
        "data: {data_prefixes: [a], validation_data_prefixes: [b], validation_fraction: 0.1}",
        "data.validation_fraction: is 0.1, but validation_data_prefixes are given; set it to 0",
    ),
    (
        "data: {validation_fraction: 1}",
        "data.validation_fraction: must be a number of at least 0 and less than 1, not 1",
    ),
    (
        "data: {blended_dataset: {weight_by_num_documents: false}}",
        "data.blended_dataset.weights: are needed with weight_by_num_documents: false, one for each data set",
    ),
    (
        "data: {blended_dataset: {weights: [1, -1]}}",
        "data.blended_dataset.weights: must not be negative, and at least one must be positive; they are [1.0, -1.0]",
    ),
    (
        "data: {blended_dataset: {weight_by_num_documents: false, weights: [1], weight_examples_proportional: true}}",
        "data.blended_dataset.weight_examples_proportional: needs weight_by_num_documents: true",
    ),
    (
        "data: {data_prefixes: [a, b], blended_dataset: {weight_by_num_documents: false, weights: [1, 1, 1]}}",
        "data.blended_dataset.weights: has 3 weights for 2 data sets; give one for each",
    ),
    (
        "data: {data_prefixes: [a, b], validation_data_prefixes: [a, b, c],"
        " blended_dataset: {weight_by_num_documents: false, weights: [1, 1]}}",
        "data.validation_blended_dataset.weights: has 2 weights for 3 data sets; give one for each",
    ),
]

NOTES = [
    (
        "transformer_architecture: {relative_position_embedding_type: none, rotary: {type: linear, factor: 2}}",
        "transformer_architecture.rotary: has no effect: relative_position_embedding_type is none, and nothing is "
        "rotated; remove it",
    ),
    ("trainer: {save_interval: 10}", "trainer.save_interval: is 10, but save_dir is null: nothing is saved"),
    (
        "trainer: {dataloader_prefetch_factor: 2}",
        "trainer.dataloader_prefetch_factor: is 2, but dataloader_num_workers is 0: nothing is prepared ahead",
    ),
    (
        "trainer: {assert_checkpoint_loaded: true}",
        "trainer.assert_checkpoint_loaded: is true, but neither load_dir nor save_dir says where a checkpoint is: "
        "training starts from random weights",
    ),
    (
        "logger: {use_tensorboard: true}",
        "logger.use_tensorboard: is true, but log_dir is null: nothing is written for TensorBoard",
    ),
    (
        "runner: {docker_config: {docker_mounts: [[/a, /b]]}}",
        "runner.docker_config: has no effect: runner_type is local, not pdsh_docker",
    ),
    (
        "runner: {runner_type: ssh, slurm: {gpus: 8}}",
        "runner.slurm: has no effect: runner_type is ssh, not slurm",
    ),
    (
        "transformer_architecture: {masked_softmax: {softmax_in_fp32: true}}",
        "transformer_architecture.masked_softmax.softmax_in_fp32: has no effect: every kernel computes the softmax in "
        "float32 at least",
    ),
    ("data: {data_prefixes: [a, b, ./a]}", "data.data_prefixes: names a 2 times: it counts as so many data sets"),
    (
        "data: {allow_incomplete_sequences_every_n: 3}",
        "data.allow_incomplete_sequences_every_n: is 3, but only_full_sequences is false: all sequences are packed",
    ),
    (
        "topology: {local_slot: 1}",
        "topology.local_slot: is 1, but each process has its own, which the launcher sets",
    ),
    (
        "training_groups: [{group_name: a}, {group_name: b, learning_rate_scheduler: {learning_rate: 0.0,"
        " learning_rate_decay_style: cosine}}]",
        "training_groups.1.learning_rate_scheduler.learning_rate: is 0: nothing is learnt by it",
    ),
]
"""What is allowed, since the predecessor allowed it, and does nothing."""

OTHER_SECTIONS: list[tuple[type[BaseConfig], str, str]] = [
    (
        nn.FP8MatmulConfig,
        "{left_dtype: e5m2, right_dtype: e5m2}",
        "right_dtype: is e5m2 like left_dtype, which no hardware multiplies; set one of them to e4m3",
    ),
    (
        nn.FP8LinearConfig,
        "{granularity: row, dtypes_grad_weight: {left_dtype: e5m2}}",
        "dtypes_grad_weight.left_dtype: is e5m2, but with granularity row this factor has to be e4m3; set it to that",
    ),
]


def problems_of(section: type[BaseConfig], text: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        section.from_dict(parse_value(text))
    return [str(problem) for problem in raised.value.problems]


@pytest.mark.parametrize(("text", "message"), PROBLEMS)
def test_a_problem_is_named_with_its_values_and_what_to_do(text: str, message: str) -> None:
    assert problems_of(TransformerConfig, text) == [message]


@pytest.mark.parametrize(("section", "text", "message"), OTHER_SECTIONS)
def test_a_section_of_the_engine_alone_has_its_problems_named(
    section: type[BaseConfig], text: str, message: str
) -> None:
    assert problems_of(section, text) == [message]


@pytest.mark.parametrize(("text", "note"), NOTES)
def test_what_has_no_effect_is_noted_and_allowed(text: str, note: str) -> None:
    assert [str(found) for found in TransformerConfig.from_dict(parse_value(text)).all_notes()] == [note]


def test_nothing_is_prefetched_without_workers() -> None:
    given = {"dataloader_prefetch_factor": 2}
    assert trainer.TrainerConfig.from_dict(given).loading.prefetch_factor is None
    assert trainer.TrainerConfig.from_dict({**given, "dataloader_num_workers": 1}).loading.prefetch_factor == 2


def test_problems_of_several_sections_are_reported_together() -> None:
    text = """{
        optimizer: {beta1: 1, bta2: 0.9},
        topology: {model_parallel_size: 3, world_size: 8, pipe_parallel_size: 1},
        transformer_architecture: {hidden_size: 250},
        trainer: {log_interval: 0},
        data: {eod_token_id: -1},
    }"""
    assert problems_of(TransformerConfig, text) == [
        "topology.data_parallel_size: does not follow: world_size (8) is not divisible by model_parallel_size 3 * "
        "pipe_parallel_size 1 = 3; the nearest world_size that is: 9",
        "optimizer.beta1: must be a number of at least 0 and less than 1, not 1",
        "optimizer.bta2: unknown key; did you mean beta2?",
        "trainer.log_interval: must be a whole number of at least 1, not 0",
        "transformer_architecture.hidden_size: is 250, but must be divisible by num_attention_heads (4); the nearest "
        "that is: 248; or give attention_head_size",
        "data.eod_token_id: must be a whole number of at least 0, or null, not -1",
    ]


def problem_calls(module: ModuleType) -> Iterator[tuple[int, int]]:
    """Yield the first and last line of each place that makes a problem."""
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Problem":
            yield node.lineno, node.end_lineno or node.lineno


def test_every_place_that_makes_a_problem_is_shown_above(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: set[tuple[str, int]] = set()

    def recording(*arguments: Any) -> Problem:
        frame = sys._getframe(1)
        reached.add((frame.f_code.co_filename, frame.f_lineno))
        return Problem(*arguments)

    for module in MODULES:
        monkeypatch.setattr(module, "Problem", recording)
    for text, _ in PROBLEMS:
        problems_of(TransformerConfig, text)
    for section, text, _ in OTHER_SECTIONS:
        problems_of(section, text)
    for text, _ in NOTES:
        list(TransformerConfig.from_dict(parse_value(text)).all_notes())
    missing = [
        f"{module.__name__}, line {first}"
        for module in MODULES
        for first, last in problem_calls(module)
        if not any(file == module.__file__ and first <= line <= last for file, line in reached)
    ]
    assert missing == []
