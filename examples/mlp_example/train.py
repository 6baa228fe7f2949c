"""What each process does: meet the others, make of the recipe what learns, train."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from examples.mlp_example.config import MLPConfig
from examples.mlp_example.data import SUBSET, WHOLE, Digits, download
from examples.mlp_example.model import layer_specs, loss_function
from scaling.core import (
    ChangeRules,
    ExitStatus,
    GroupPattern,
    LaunchContext,
    Learner,
    ParameterGroup,
    Recipe,
    RunIdentity,
    Topology,
    configure_logging,
    run_training,
    run_training_process,
)


def recipe_of(config: MLPConfig, directory: Path) -> Recipe:
    """Return what is trained, whatever the layout."""
    rate, decay = config.learning_rate_scheduler, config.training.weight_decay
    return Recipe(
        layers=partial(layer_specs, config.architecture),
        loss=loss_function,
        training=Digits(directory, "train", moving=True),
        evaluation=Digits(directory, "t10k", moving=False),
        optimizer=config.optimizer,
        groups=[GroupPattern(group=ParameterGroup(name="all", learning_rate_scheduler=rate, weight_decay=decay))],
        seed=config.trainer.seed,
        usual_weight=config.topology.global_batch_size,
    )


def train(config: MLPConfig, launch: LaunchContext) -> ExitStatus:
    """Train as `config` says, as one of the processes of `launch`, and return what to end with."""
    configure_logging(config.logger, rank=launch.rank, world_size=launch.world_size)
    directory = config.data.directory or (WHOLE if config.data.download else SUBSET)
    if config.data.download and launch.rank == 0:
        download(directory)  # the others wait for this process to connect
    with Topology.connect(config.topology, launch, digest=config.digest()) as topology:
        recipe = recipe_of(config, directory)
        learner = Learner(recipe, config.topology, topology, loading=config.trainer.loading)
        rules = ChangeRules(order=("fingerprints",))
        return run_training(config, learner, RunIdentity(config, {"data": recipe.training.fingerprint()}, rules))


if __name__ == "__main__":
    run_training_process(MLPConfig, train)
