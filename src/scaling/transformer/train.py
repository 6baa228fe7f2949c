"""Train a language model in the processes a launcher has started: everything, top to bottom.

torchrun --nproc-per-node 4 -m scaling.transformer.train CONFIG [KEY=VALUE ...]
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from scaling.core import (
    Axis,
    BaseDataset,
    ChangeRules,
    ConfigError,
    ExitStatus,
    GroupPattern,
    LaunchContext,
    Optimizer,
    ParallelModule,
    ParameterGroup,
    RunIdentity,
    StorageError,
    Topology,
    assign,
    configure_logging,
    run_process,
    run_training,
)
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.files import storage_errors, write_atomically
from scaling.transformer.data.load import load_datasets, prepare_data
from scaling.transformer.data.tokenizer import tokenizer_digest
from scaling.transformer.flops import flops_per_token
from scaling.transformer.inference.module import TOKENIZER_FILE
from scaling.transformer.losses import CrossEntropyLoss
from scaling.transformer.model import layer_specs

_log = logging.getLogger(__name__)

CHANGE_RULES = ChangeRules(
    identity=("transformer_architecture", "fingerprints", "data.eod_token_id"),
    order=("trainer.seed", "fingerprints.data"),
    schedule=(
        "transformer_architecture.precision",
        "transformer_architecture.dropout_stream",
        "transformer_architecture.dropout_embedding",
        "transformer_architecture.dropout_attention_probs",
        "transformer_architecture.dropout_after_attention",
        "transformer_architecture.dropout_after_mlp",
        "topology.global_batch_size",
        "optimizer",
        "training",
        "training_groups",
        "trainer.train_iterations",
    ),
    runtime=(
        "transformer_architecture.masked_softmax.kernel",
        "transformer_architecture.attention_qkv_in_one",
        "transformer_architecture.vocab_file",
        "optimizer.zero",
        "optimizer.allreduce_bucket_size",
    ),
)
"""What may change when a run is resumed. The data is known by its fingerprint, wherever its files lie."""


def train(config: TransformerConfig, launch: LaunchContext) -> ExitStatus:
    """Train as `config` says, as one of the processes of `launch`, and return what to end with."""
    config = prepare_data(config)
    configure_logging(config.logger, rank=launch.rank, world_size=launch.world_size)
    if config.training.use_deterministic_torch_algorithms:
        torch.use_deterministic_algorithms(True)
    with Topology.connect(config.topology, launch, digest=config.digest()) as topology:
        architecture = config.transformer_architecture
        training, validation = load_datasets(config)
        module = ParallelModule(
            layer_specs(architecture, topology, seed=config.trainer.seed),
            topology,
            config.topology,
            seed=config.trainer.seed,
        )
        optimizer = Optimizer(
            config.optimizer,
            parameter_groups(config, module, topology),
            topology,
            module=module,
            usual_weight=config.topology.global_batch_size * architecture.sequence_length,
        )
        _introduce(config, module, topology)
        return run_training(
            config.trainer,
            config.logger,
            config.topology,
            topology=topology,
            module=module,
            optimizer=optimizer,
            loss_function=CrossEntropyLoss(architecture.vocab_size, topology),
            training=training,
            validation=validation,
            identity=RunIdentity(config, fingerprints_of(config, training), CHANGE_RULES),
            profiler_config=config.profiler,
            tokens_per_sample=architecture.sequence_length,
            flops_per_sample=float(flops_per_token(architecture) * architecture.sequence_length),
            once_resumed=partial(_keep_tokenizer, config, topology),
        )


def fingerprints_of(config: TransformerConfig, training: BaseDataset[Any]) -> dict[str, str]:
    """Return digests of what the configuration only points at: token ids mean nothing without their tokenizer."""
    vocab_file = config.transformer_architecture.vocab_file
    tokenizer = {} if vocab_file is None else {"tokenizer": tokenizer_digest(vocab_file)}
    return {"data": training.fingerprint(), **tokenizer}


def parameter_groups(config: TransformerConfig, module: ParallelModule, topology: Topology) -> list[ParameterGroup]:
    """Return the optimizer's groups as `training_groups` asks for them. Collective: all ranks, over the store."""
    return assign(
        module.parameters_with_meta(),
        group_patterns(config),
        topology,
        allow_missing=config.training.allow_missing_params_in_optimizer,
    )


def group_patterns(config: TransformerConfig) -> list[GroupPattern]:
    """Return which parameters `training_groups` trains how."""
    return [
        GroupPattern(
            group=ParameterGroup(
                name=group.group_name,
                learning_rate_scheduler=group.learning_rate_scheduler,
                weight_decay=group.weight_decay,
                independent_weight_decay=group.independent_weight_decay,
            ),
            include=tuple(group.parameters_include or ()),
            exclude=tuple(group.parameters_exclude),
        )
        for group in config.training_groups
    ]


def _introduce(config: TransformerConfig, module: ParallelModule, topology: Topology) -> None:
    """Say what is about to be trained."""
    if topology.rank != 0:
        return
    sizes = " x ".join(f"{axis.value} {topology.size(axis)}" for axis in Axis if axis is not Axis.CONTEXT)
    local = sum(parameter.numel() for parameter in module.parameters())
    whose = "parameters" if topology.layout.world_size == 1 else "parameters on this rank"
    _log.info(
        "%d layers, %s %s, %s on %s",
        config.transformer_architecture.num_layers,
        f"{local:,}",
        whose,
        sizes,
        topology.device,
    )


def _keep_tokenizer(config: TransformerConfig, topology: Topology) -> None:
    """Leave the tokenizer beside the checkpoints. Collective: all ranks learn whether rank 0 could."""
    vocab_file, save_dir = config.transformer_architecture.vocab_file, config.trainer.save_dir
    if vocab_file is None or save_dir is None:
        return
    problem = None
    if topology.rank == 0:
        try:
            with storage_errors(f"leaving the tokenizer in trainer.save_dir ({save_dir})"):
                kept, content = save_dir / TOKENIZER_FILE, vocab_file.read_bytes()
                if not kept.exists() or kept.read_bytes() != content:  # another one, or one that was cut off
                    save_dir.mkdir(parents=True, exist_ok=True)
                    write_atomically(kept, content)
        except StorageError as error:
            problem = str(error)
    told = topology.exchange("tokenizer", problem)[0]
    if told is not None:
        raise StorageError(told)


def main(arguments: Sequence[str] | None = None) -> ExitStatus:
    """Read CONFIG [KEY=VALUE ...] and train."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError("name a configuration: python3 -m scaling.transformer.train CONFIG [KEY=VALUE ...]")
    launch = LaunchContext.from_environment()
    config = TransformerConfig.from_yaml(Path(arguments[0]), arguments[1:], quiet=launch.rank != 0)
    return train(config, launch)


if __name__ == "__main__":
    run_process(main)
