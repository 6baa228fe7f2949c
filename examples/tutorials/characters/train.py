"""What can be set, what is trained, and what each process does; and the proof that layouts are the same run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from examples.tutorials.characters.model import ModelConfig, layers, make_loss, read
from scaling.core import (
    BaseConfig,
    ChangeRules,
    ExitStatus,
    GroupPattern,
    LaunchContext,
    Learner,
    LearningRateSchedulerConfig,
    OnResume,
    ParameterGroup,
    Problem,
    Recipe,
    RunConfig,
    RunIdentity,
    Topology,
    TopologyConfig,
    configure_logging,
    run_training,
    run_training_process,
    verify_layout,
)


class DataConfig(BaseConfig):
    on_resume = OnResume.RUNTIME

    folder: Path = Path("docs")
    """Folder whose files *.md are the text."""


def fit(topology: TopologyConfig, model: ModelConfig) -> Iterator[Problem]:
    """Check that the topology can cut the model, before any process starts."""
    if model.inner % topology.model_parallel_size:
        parts = topology.model_parallel_size
        yield Problem("model.inner", f"is {model.inner}; make it a multiple of model_parallel_size ({parts})")


class CharactersConfig(RunConfig):
    cross_checks = (fit,)

    learning_rate_scheduler: LearningRateSchedulerConfig = LearningRateSchedulerConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()


def recipe_of(config: CharactersConfig) -> Recipe:
    """Return what is trained, whatever the layout."""
    training, held_out = read(config.data.folder)
    rate = config.learning_rate_scheduler
    return Recipe(
        layers=partial(layers, config.model),
        loss=make_loss,
        training=training,
        evaluation=held_out,
        optimizer=config.optimizer,
        groups=[GroupPattern(group=ParameterGroup(name="all", learning_rate_scheduler=rate, weight_decay=0.0))],
        seed=config.trainer.seed,
        usual_weight=config.topology.global_batch_size,
    )


def train(config: CharactersConfig, launch: LaunchContext) -> ExitStatus:
    """Train as one of the processes of a run."""
    configure_logging(config.logger, rank=launch.rank, world_size=launch.world_size)
    with Topology.connect(config.topology, launch, digest=config.digest()) as topology:
        recipe = recipe_of(config)
        learner = Learner(recipe, config.topology, topology, loading=config.trainer.loading)
        fingerprints = {"data": recipe.training.fingerprint()}
        return run_training(config, learner, RunIdentity(config, fingerprints, ChangeRules(order=("fingerprints",))))


def check(path: str, *settings: str) -> None:
    """Train in the configured layout and in one process, side by side, and say whether they are the same run."""
    config = CharactersConfig.from_yaml(path, settings)
    report = verify_layout(recipe_of(config), config.topology)
    print("the same run" if report.agrees else report)


if __name__ == "__main__":
    run_training_process(CharactersConfig, train)
