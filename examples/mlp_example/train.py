"""What each process does: meet the others, put the parts together, train."""

from __future__ import annotations

from examples.mlp_example.config import MLPConfig
from examples.mlp_example.data import Digits, download
from examples.mlp_example.model import layer_specs, loss
from scaling.core import (
    ChangeRules,
    ExitStatus,
    GroupPattern,
    LaunchContext,
    Optimizer,
    ParallelModule,
    ParameterGroup,
    RunIdentity,
    Topology,
    assign,
    configure_logging,
    run_training,
)


def train(config: MLPConfig, launch: LaunchContext) -> ExitStatus:
    """Train as `config` says, as one of the processes of `launch`, and return what to end with."""
    configure_logging(config.logger, rank=launch.rank, world_size=launch.world_size)
    if config.data.download and config.data.directory and launch.rank == 0:
        download(config.data.directory)  # the others wait for this process to connect
    with Topology.connect(config.topology, launch, digest=config.digest()) as topology:
        training = Digits(config.data.directory, "train", moving=True)
        held_out = Digits(config.data.directory, "t10k", moving=False)
        layers = layer_specs(config.architecture, topology)
        module = ParallelModule(layers, topology, config.topology, seed=config.trainer.seed)
        everything = ParameterGroup(
            name="all",
            learning_rate_scheduler=config.learning_rate_scheduler,
            weight_decay=config.training.weight_decay,
        )
        groups = assign(module.parameters_with_meta(), [GroupPattern(group=everything)], topology)
        optimizer = Optimizer(
            config.optimizer, groups, topology, module=module, usual_weight=config.topology.global_batch_size
        )
        rules = ChangeRules(identity=("architecture", "trainer.seed", "fingerprints"))
        return run_training(
            config.trainer,
            config.logger,
            config.topology,
            topology=topology,
            module=module,
            optimizer=optimizer,
            loss_function=loss,
            training=training,
            validation=held_out,
            identity=RunIdentity(config, {"data": training.fingerprint()}, rules),
        )
