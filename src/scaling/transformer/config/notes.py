"""Notes on a configuration: settings that are allowed but probably not meant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from scaling.core import MaskedSoftmaxKernel, Problem, TrainerConfig, steps_at_zero
from scaling.transformer.config.choices import Precision
from scaling.transformer.config.root import TransformerConfig


def notes(config: TransformerConfig) -> Iterator[Problem]:
    """Yield settings that are allowed but probably not meant."""
    architecture, data, trainer = config.transformer_architecture, config.data, config.trainer
    if not data.data_prefixes and data.corpus is None:
        yield Problem("data", "names neither data_prefixes nor a corpus; no training starts without data")
    elif not architecture.vocab_size and architecture.vocab_file is None and data.corpus is None:
        yield Problem(
            "transformer_architecture",
            "has neither vocab_size nor vocab_file; no training starts without one: name the tokenizer of the data",
        )
    if not trainer.train_iterations:
        state = "is not given" if trainer.train_iterations is None else "is 0"
        yield Problem("trainer.train_iterations", f"{state}: nothing is trained")
    for group in config.training_groups:
        schedule, end = group.learning_rate_scheduler, trainer.train_iterations or 0
        if idle := steps_at_zero(schedule, end):
            yield Problem(
                f"training_groups ({group.group_name}): learning_rate_decay_iters",
                f"is {schedule.learning_rate_decay_iters}, but training ends at step {end} (trainer.train_iterations): "
                f"the learning rate of the last {idle} steps is 0, and they change nothing",
            )
    if trainer.save_dir is None:
        yield Problem("trainer.save_dir", "is not given: nothing is saved")
    if trainer.loads_from_elsewhere and trainer.load_dir is not None and not _holds_anything(trainer):
        yield Problem(
            "trainer.load_dir", f"({trainer.load_dir}) is an empty folder: training starts from random weights"
        )
    if trainer.eval_interval and not data.validation_data_prefixes and data.validation_fraction == 0:
        yield Problem(
            "trainer.eval_interval",
            "has nothing to evaluate on; set data.validation_fraction or data.validation_data_prefixes",
        )
    if trainer.keep_every_steps is not None and trainer.keep_last_checkpoints is None:
        yield Problem(
            "trainer.keep_every_steps",
            f"is {trainer.keep_every_steps}, but has no effect: without keep_last_checkpoints no checkpoint is deleted",
        )
    for name in ("reset_attention_mask", "reset_position_ids"):
        if data.records is not None and not getattr(architecture, name):
            yield Problem(
                f"transformer_architecture.{name}",
                "is false, but the data are records, which never see each other and each begin at position 0",
            )
    mixture = data.blended_dataset
    if mixture.weights is not None and mixture.weight_by_num_documents and len(data.data_prefixes or ()) > 1:
        yield Problem(
            "data.blended_dataset.weights",
            "are not used, because weight_by_num_documents derives the weights from the sizes; set it to false to use "
            "these, or remove them",
        )
    kernel, precision = architecture.masked_softmax.kernel, architecture.precision
    if kernel is MaskedSoftmaxKernel.FLASH_ATTENTION and precision not in (Precision.FLOAT16, Precision.BFLOAT16):
        yield Problem(
            "transformer_architecture.masked_softmax.kernel",
            "is flash_attention, but of its kernels "
            + ("only flex (PyTorch) computes in float32" if precision is Precision.FLOAT32 else "none takes float64")
            + "; the start of a training tells what is used",
        )
    if kernel is MaskedSoftmaxKernel.FLASH_ATTENTION and architecture.dropout_attention_probs:
        yield Problem(
            "transformer_architecture.masked_softmax.kernel",
            f"is flash_attention, whose kernels drop no probabilities; with dropout_attention_probs "
            f"{architecture.dropout_attention_probs:g} a training computes attention step by step, all of them in "
            "memory; set it to 0 for flash attention",
        )
    if (window := architecture.local_attention_window_size) is not None:
        yield Problem(
            "transformer_architecture.local_attention_window_size",
            f"is {window}: a token sees so many keys, itself included, in the first "
            f"{architecture.num_local_attention_heads} heads; Aleph-Alpha/scaling showed it {window + 1}, in all heads",
        )
    if not architecture.causal:
        yield Problem(
            "transformer_architecture.causal", "is false: each token sees the next one, which it is to predict"
        )
    yield from _notes_on_output(config)
    yield from config.all_notes()


def _holds_anything(trainer: TrainerConfig) -> bool:
    """Return whether save_dir or load_dir may hold something to start from."""
    for folder in (trainer.save_dir, trainer.load_dir):
        with suppress(OSError):
            if folder is not None and any(folder.iterdir()):
                return True
    return False


def _notes_on_output(config: TransformerConfig) -> Iterator[Problem]:
    """Yield settings that keep metrics and timelines from being written."""
    logger, profiler, ranks = config.logger, config.profiler, config.topology.world_size
    for name, is_on in (
        ("metrics_ranks", True),
        ("tensorboard_ranks", logger.use_tensorboard),
        ("wandb_ranks", logger.use_wandb),
    ):
        chosen = getattr(logger, name)
        if is_on and isinstance(chosen, list) and min(chosen, default=0) >= ranks:
            yield Problem(
                f"logger.{name}",
                f"is {chosen}, but the ranks of this run are 0 to {ranks - 1}: none of them writes metrics there",
            )
    if profiler.profile_steps and profiler.profiler_output is None and logger.log_dir is None:
        yield Problem(
            "profiler.profile_steps", "has no place to write to; set profiler.profiler_output or logger.log_dir"
        )
    end, first = config.trainer.train_iterations or 0, max(1, profiler.profile_start_at_step)
    if profiler.profile_steps and first > end > 0:
        yield Problem(
            "profiler.profile_start_at_step",
            f"is {profiler.profile_start_at_step}, but training ends at step {end} (trainer.train_iterations): nothing "
            "is recorded",
        )
    elif profiler.profile_steps and first + profiler.profile_steps - 1 > end > 0:
        yield Problem(
            "profiler.profile_steps",
            f"is {profiler.profile_steps} from step {first} on (profile_start_at_step), but training ends at step "
            f"{end} (trainer.train_iterations): {end + 1 - first} are recorded",
        )
