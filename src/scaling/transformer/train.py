"""Train a language model in the processes a launcher has started: everything, top to bottom.

torchrun --nproc-per-node 4 -m scaling.transformer.train CONFIG [KEY=VALUE ...]
"""

from __future__ import annotations

if __name__ == "__main__":  # before torch is imported, which takes seconds: signals that arrive meanwhile are handled
    from scaling.core import listen_early

    listen_early()

import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import torch

from scaling.core import (
    ActivationCheckpointingType,
    BaseDataset,
    ChangeRules,
    ConfigError,
    ExitStatus,
    LaunchContext,
    Learner,
    RunIdentity,
    StorageError,
    Topology,
    bind_to_numa_node,
    choose_device,
    configure_logging,
    find_kernels,
    kept_by_selective,
    read_config,
    run_process,
    run_training,
    slot_bytes,
    storage_errors,
)
from scaling.transformer.config.choices import Precision
from scaling.transformer.config.groups import free_on_base, trained_parameters
from scaling.transformer.config.model_plan import base_plan_of, plan_of
from scaling.transformer.config.notes import notes
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.load import TextMixture, load_datasets
from scaling.transformer.data.load import told as told_data
from scaling.transformer.data.prepare import prepare_data
from scaling.transformer.data.tokenizer import TOKENIZER_FILE, tokenizer_digest
from scaling.transformer.hf.companions import companions_of_tokenizer
from scaling.transformer.layers.kernels import told_of_kernels
from scaling.transformer.recipe import recipe_of

_log = logging.getLogger(__name__)

CHANGE_RULES = ChangeRules(order=("fingerprints.data",))
"""Each setting declares at its field what a change means for a resumed run. The data is not a setting: it is identified
by its fingerprint, wherever its files are."""

DECIDED_BY: Mapping[str, Sequence[str]] = {
    "data": (
        "data.data_prefixes",
        "data.blended_dataset",
        "data.validation_fraction",
        "data.only_full_sequences",
        "data.allow_incomplete_sequences_every_n",
        "data.legacy_dataset",
        "data.record_format",
        "data.chat_template",
        "data.train_on",
        "data.packing",
        "data.too_long",
    ),
    "tokenizer": ("transformer_architecture.vocab_file",),
}
"""The settings that determine each fingerprint."""


def train(config: TransformerConfig, launch: LaunchContext) -> ExitStatus:
    """Train as `config` says, as one of the processes of `launch`, and return the exit status."""
    node = None
    if config.runner.numa_binding:  # before much memory is allocated
        node = bind_to_numa_node(launch.local_rank, choose_device(config.topology.device, launch.local_rank))
    config = prepare_data(config)
    configure_logging(config.logger, rank=launch.rank, world_size=launch.world_size)
    if node is not None:
        _log.info("process %d keeps to NUMA node %d", launch.rank, node)
    if config.training.use_deterministic_torch_algorithms:
        torch.use_deterministic_algorithms(True)
    with Topology.connect(config.topology, launch, digest=config.digest()) as topology:
        training, validation = load_datasets(config)
        recipe = recipe_of(config, training, validation)
        learner = Learner(recipe, config.topology, topology, loading=config.trainer.loading)
        _introduce(config, learner, training)
        return run_training(
            config,
            learner,
            RunIdentity(
                config,
                fingerprints_of(config, training),
                CHANGE_RULES,
                DECIDED_BY,
                free_on_base(config.transformer_architecture),
            ),
            once_resumed=partial(_keep_tokenizer, config, topology),
            next_commands=_next_commands(config),
        )


def _next_commands(config: TransformerConfig) -> list[str]:
    """Return commands to try on the files that the training writes."""
    save_dir, log_dir = config.trainer.save_dir, config.logger.log_dir
    commands = [] if log_dir is None else [f"scaling report {shlex.quote(str(log_dir))}"]
    if save_dir is not None and config.transformer_architecture.vocab_file is not None:
        commands.append(f"scaling generate {shlex.quote(str(save_dir))} --prompt TEXT")
    return commands


def fingerprints_of(config: TransformerConfig, training: BaseDataset[Any]) -> dict[str, str]:
    """Return digests of the data and of the tokenizer, without which token ids mean nothing."""
    vocab_file = config.transformer_architecture.vocab_file
    tokenizer = {} if vocab_file is None else {"tokenizer": tokenizer_digest(vocab_file)}
    return {"data": training.fingerprint(), **tokenizer}


def _introduce(config: TransformerConfig, learner: Learner, training: TextMixture) -> None:
    """Log what is about to be trained."""
    topology = learner.topology
    if topology.rank != 0:
        return
    _log.info("%s", _told_of_training(config))
    plan = plan_of(config.transformer_architecture)
    _log.info("%s", told_of_kernels(plan, topology.device.type, find_kernels(topology.device)))
    if config.topology.compile.value != "auto" or topology.device.type != "cpu":
        _log.info("compile: %s", learner.module.compiling)
    if config.topology.activation_checkpointing_type is ActivationCheckpointingType.SELECTIVE:
        _log.info("activation checkpointing: %s", kept_by_selective())
    for line in told_data(training):
        _log.info("data: %s", line)


def _told_of_training(config: TransformerConfig) -> str:
    """Return how many parameters are trained, and how much the optimizer keeps for them on all ranks, as a line."""
    architecture, rule = config.transformer_architecture, config.optimizer.rule()
    trained = list(trained_parameters(config.training_groups, architecture))
    count, whole = sum(prod(parameter.shape) for parameter in trained), plan_of(architecture).num_parameters
    base = {parameter.name for parameter in base_plan_of(architecture).parameters()}
    own = Precision(architecture.precision).dtype
    slots, copy = slot_bytes(rule, own), 4 if own.itemsize < 4 else 0
    kept = sum(prod(parameter.shape) * (slots + copy * (parameter.name in base)) for parameter in trained)
    share = 100 * count / max(1, whole)
    return (
        f"{count:,} of {whole:,} parameters are trained ({share:.3g} %), in {len(trained):,} tensors; the optimizer "
        f"keeps {kept:,} bytes of them"
    )


def _keep_tokenizer(config: TransformerConfig, topology: Topology) -> None:
    """Write the tokenizer, and the files that belong to it, beside the checkpoints.

    Collective: all ranks learn whether rank 0 succeeded, and raise `StorageError` if it did not.
    """
    vocab_file, save_dir = config.transformer_architecture.vocab_file, config.trainer.save_dir
    if vocab_file is None or save_dir is None:
        return
    problem = None
    if topology.rank == 0:
        try:
            doing = f"leaving the tokenizer in trainer.save_dir ({save_dir})"
            with storage_errors(doing):
                companions = companions_of_tokenizer(vocab_file)
            companions.write(save_dir, tokenizer_name=TOKENIZER_FILE, doing=doing)
        except StorageError as error:
            problem = str(error)
    failure = topology.broadcast("tokenizer", problem)
    if failure is not None:
        raise StorageError(failure)


def main(arguments: Sequence[str] | None = None) -> ExitStatus:
    """Read CONFIG [KEY=VALUE ...] and train."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError("name a configuration: python3 -m scaling.transformer.train CONFIG [KEY=VALUE ...]")
    launch = LaunchContext.from_environment()
    text = read_config(arguments[0], copy=launch.config_copy)
    config = TransformerConfig.from_str(text, arguments[1:], source=arguments[0], quiet=launch.rank != 0)
    if launch.rank == 0 and launch.config_copy is None:  # else the process that read and checked it has printed them
        for note in notes(config):
            sys.stderr.write(f"note: {note}\n")
    return train(config, launch)


if __name__ == "__main__":
    run_process(main)
