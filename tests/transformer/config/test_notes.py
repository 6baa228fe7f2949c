"""What is allowed and probably not meant is noted."""

from __future__ import annotations

from typing import Any

import pytest

from scaling.transformer.config import TransformerConfig
from scaling.transformer.config.notes import notes

QUIET = {"data": {"corpus": "python_stdlib"}, "trainer": {"train_iterations": 3, "save_dir": "x"}}
TWO = {"model_parallel_size": 1, "pipe_parallel_size": 1, "data_parallel_size": 2}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ["data", "trainer.train_iterations", "trainer.save_dir"]),
        (
            {"data": {"data_prefixes": ["a"]}, "trainer": {"train_iterations": 3, "save_dir": "x"}},
            ["transformer_architecture"],
        ),
        (
            {
                "data": {"corpus": "python_stdlib"},
                "trainer": {"train_iterations": 3, "save_dir": "x", "eval_interval": 1},
                "transformer_architecture": {"masked_softmax": {"kernel": "flash_attention"}},
            },
            ["trainer.eval_interval", "transformer_architecture.masked_softmax.kernel"],
        ),
        (
            {
                **QUIET,
                "transformer_architecture": {"num_local_attention_heads": 2, "local_attention_window_size": 9},
            },
            ["transformer_architecture.local_attention_window_size"],
        ),
        (
            {
                "data": {"corpus": "python_stdlib", "validation_fraction": 0.1},
                "trainer": {"train_iterations": 3, "save_dir": "x", "eval_interval": 1},
            },
            [],
        ),
        (
            {
                "data": {"data_prefixes": ["a", "b"], "blended_dataset": {"weights": [1, 2]}},
                "transformer_architecture": {"vocab_size": 9},
                "trainer": {"train_iterations": 3, "save_dir": "x", "keep_every_steps": 10},
            },
            ["trainer.keep_every_steps", "data.blended_dataset.weights"],
        ),
        (
            {
                "data": {
                    "data_prefixes": ["a", "b"],
                    "blended_dataset": {"weights": [1, 2], "weight_by_num_documents": False},
                },
                "transformer_architecture": {"vocab_size": 9},
                "trainer": {
                    "train_iterations": 3,
                    "save_dir": "x",
                    "keep_every_steps": 10,
                    "keep_last_checkpoints": 2,
                },
            },
            [],
        ),
        (
            {
                "data": {"data_prefixes": ["a"], "blended_dataset": {"weights": [1]}},
                "transformer_architecture": {"vocab_size": 9},
                "trainer": {"train_iterations": 3, "save_dir": "x"},
            },
            [],
        ),
        (
            {
                **QUIET,
                "topology": TWO,
                "logger": {"metrics_ranks": [2, 3], "tensorboard_ranks": [2], "wandb_ranks": [2]},
            },
            ["logger.metrics_ranks"],
        ),
        ({**QUIET, "topology": TWO, "logger": {"metrics_ranks": [0, 7]}}, []),
        ({**QUIET, "logger": {"metrics_ranks": []}}, []),
        ({**QUIET, "logger": {"metrics_ranks": [1], "use_wandb": True, "wandb_ranks": [0]}}, ["logger.metrics_ranks"]),
        ({**QUIET, "profiler": {"profile_steps": 1}}, ["profiler.profile_steps", "profiler.profile_start_at_step"]),
        ({**QUIET, "logger": {"log_dir": "x"}, "profiler": {"profile_steps": 1, "profile_start_at_step": 3}}, []),
        (
            {**QUIET, "logger": {"log_dir": "x"}, "profiler": {"profile_steps": 2, "profile_start_at_step": 3}},
            ["profiler.profile_steps"],
        ),
        ({**QUIET, "logger": {"log_dir": "x"}, "profiler": {"profile_steps": 3, "profile_start_at_step": 0}}, []),
        ({**QUIET, "transformer_architecture": {"causal": False}}, ["transformer_architecture.causal"]),
        (
            {
                **QUIET,
                "transformer_architecture": {
                    "precision": "bfloat16",
                    "dropout_attention_probs": 0.1,
                    "masked_softmax": {"kernel": "flash_attention"},
                },
            },
            ["transformer_architecture.masked_softmax.kernel"],
        ),
        ({**QUIET, "logger": {"use_tensorboard": True}}, ["logger.use_tensorboard"]),
    ],
)
def test_what_is_probably_not_meant_is_noted(values: dict[str, Any], expected: list[str]) -> None:
    assert [note.path for note in notes(TransformerConfig.from_dict(values))] == expected


def test_a_decay_that_ends_before_the_training_is_noted() -> None:
    schedule = {"learning_rate_decay_iters": 2}
    (note,) = notes(TransformerConfig.from_dict({**QUIET, "learning_rate_scheduler": schedule}))
    assert str(note) == (
        "training_groups (all): learning_rate_decay_iters: is 2, but training ends at step 3 "
        "(trainer.train_iterations): the learning rate of the last 1 steps is 0, and they change nothing"
    )


def test_settings_for_the_borders_of_texts_are_noted_beside_records() -> None:
    architecture = {"reset_attention_mask": False, "reset_position_ids": False, "vocab_size": 100}
    records = {"data_prefixes": ["a"], "record_format": "auto"}
    found = notes(TransformerConfig.from_dict({**QUIET, "transformer_architecture": architecture, "data": records}))
    assert [note.path for note in found] == [f"transformer_architecture.{name}" for name in list(architecture)[:2]]
