"""What each process does: meet the others, put the parts together, train."""

from __future__ import annotations

from examples.mlp_example.config import MLPConfig
from examples.mlp_example.data import SUBSET, WHOLE, Digits, download
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
    run_training_process,
)


def train(config: MLPConfig, launch: LaunchContext) -> ExitStatus:
    """Train as `config` says, as one of the processes of `launch`, and return what to end with."""
    configure_logging(config.logger, rank=launch.rank, world_size=launch.world_size)
    directory = config.data.directory or (WHOLE if config.data.download else SUBSET)
    if config.data.download and launch.rank == 0:
        download(directory)  # the others wait for this process to connect
    with Topology.connect(config.topology, launch, digest=config.digest()) as topology:
        layers = layer_specs(config.architecture, topology)
        module = ParallelModule(layers, topology, config.topology, seed=config.trainer.seed)
        rate, decay = config.learning_rate_scheduler, config.training.weight_decay
        group = ParameterGroup(name="all", learning_rate_scheduler=rate, weight_decay=decay)
        groups = assign(module.parameters_with_meta(), [GroupPattern(group=group)], topology)
        batch = config.topology.global_batch_size
        training = Digits(directory, "train", moving=True)
        rules = ChangeRules(identity=("architecture",), order=("trainer.seed", "fingerprints"))
        return run_training(
            config.trainer,
            config.logger,
            config.topology,
            topology=topology,
            module=module,
            optimizer=Optimizer(config.optimizer, groups, topology, module=module, usual_weight=batch),
            loss_function=loss,
            training=training,
            validation=Digits(directory, "t10k", moving=False),
            identity=RunIdentity(config, {"data": training.fingerprint()}, rules),
        )


if __name__ == "__main__":
    run_training_process(MLPConfig, train)
