"""Training and `verify-layout` start from the same recipe, so that one proves what the other runs."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from scaling.cli import verify_layout as command
from scaling.core import BaseDataset, ConfigError, LaunchContext, Learner, Recipe, Session, Topology
from scaling.transformer import train as program
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.config.training import LossFunctionConfig
from scaling.transformer.data.load import load_datasets
from scaling.transformer.data.prepare import prepare_data
from scaling.transformer.recipe import recipe_of
from scaling.transformer.verify.comparable import comparable
from tests.transformer.small import build_corpus, nested, settings_of, train_small, values, write_config

EXACT = {
    "transformer_architecture.precision": "float64",
    "transformer_architecture.masked_softmax.kernel": "torch",
    "transformer_architecture.dropout_after_mlp": 0.1,
    "optimizer.gradient_clipping": 0.5,
    "optimizer.beta2": 0.9,
    "trainer.seed": 5,
    "training.allow_missing_params_in_optimizer": True,
    "learning_rate_scheduler": None,
    "learning_rate_scheduler.learning_rate": None,
    "learning_rate_scheduler.learning_rate_warmup_steps": None,
    "training_groups": [
        {"group_name": "norms", "parameters_include": ["norm"], "weight_decay": 0.0},
        {"group_name": "rest", "parameters_exclude": ["norm", "embedding"], "independent_weight_decay": True},
    ],
}


class LossFunctionOfAnother(LossFunctionConfig):
    """A kind that a program of its own has brought."""

    loss_type: str = "of_another"


class Stopped(Exception):
    """Raised where a test has seen enough."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    build_corpus(folder / "validation", documents=9, seed=1)
    return build_corpus(folder / "training")


@pytest.fixture
def settings(corpus: Path, tmp_path: Path) -> dict[str, Any]:
    """A configuration in which little is as it is by default."""
    validation = {"data.validation_data_prefixes": [str(corpus.with_name("validation"))]}
    return settings_of(corpus, tmp_path / "run", EXACT, validation)


def trained(config: TransformerConfig) -> Recipe:
    """Return the recipe that the training program makes its learner of."""
    with mock.patch.object(program, "Learner", side_effect=Stopped) as learner, pytest.raises(Stopped):
        program.train(config, LaunchContext.from_environment())
    recipe: Recipe = learner.call_args.args[0]
    return recipe


def verified(path: Path) -> Recipe:
    """Return the recipe that `scaling verify-layout --full-size` lets two layouts train."""
    with mock.patch.object(command, "verify_layout", side_effect=Stopped) as verify, pytest.raises(Stopped):
        command.verify(path, full_size=True)
    recipe: Recipe = verify.call_args.args[0]
    return recipe


def comparably(recipe: Recipe) -> dict[str, Any]:
    """Return the fields of a recipe, data sets by their fingerprints."""
    found = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    return {name: value.fingerprint() if isinstance(value, BaseDataset) else value for name, value in found.items()}


def test_training_and_verification_get_the_same_recipe(settings: dict[str, Any], tmp_path: Path) -> None:
    rows_of_tokens = {"transformer_architecture.finetunable_token_ids": [1]}  # on a base, whose tables may be smaller
    path = write_config(tmp_path / "config.yml", {**settings, **rows_of_tokens})
    ours = comparably(trained(comparable(TransformerConfig.from_yaml(path))))
    assert ours == comparably(verified(path))
    assert ours["evaluation"] is not None
    default = comparably(Recipe(layers=lambda _: [], loss=mock.Mock(), training=mock.Mock(BaseDataset)))
    assert [name for name, value in ours.items() if value == default[name]] == []  # nothing is left out of both


def test_recipes_differ_where_configurations_do(settings: dict[str, Any]) -> None:
    data = mock.Mock(BaseDataset)

    def made(**changes: Any) -> Recipe:
        return recipe_of(TransformerConfig.from_dict(nested({**settings, **changes})), data)

    assert made() == made()
    sizes = {
        "topology.global_batch_size": 6,
        "topology.micro_batch_size": 2,
        "transformer_architecture.sequence_length": 10,
    }
    recipe, twice = made(**sizes), made(**{**sizes, "transformer_architecture.sequence_length": 20})
    assert (recipe.usual_weight, recipe.tokens_per_sample) == (60.0, 10)
    assert twice.flops_per_sample is not None
    assert recipe.flops_per_sample is not None
    assert twice.flops_per_sample > 2 * recipe.flops_per_sample > 0  # attention costs more per token
    for path, value in (
        ("transformer_architecture.num_layers", 2),
        ("trainer.seed", 6),
        ("optimizer.beta1", 0.8),
        ("training.loss_function_config.z_loss", 1e-4),
        ("training.loss_function_config.chunk_size", 5),
        ("topology.global_batch_size", 4),
    ):
        assert made(**{path: value}) != made(), path


def test_a_loss_that_nothing_computes_is_refused(settings: dict[str, Any]) -> None:
    config = TransformerConfig.from_dict(nested(settings))
    training = config.training.model_copy(update={"loss_function_config": LossFunctionOfAnother()})
    recipe = recipe_of(config.model_copy(update={"training": training}), mock.Mock(BaseDataset))
    with pytest.raises(ConfigError, match="loss_function_config is a LossFunctionOfAnother, which nothing computes"):
        recipe.loss(Topology.single())


def test_a_session_takes_the_steps_of_the_training_program_bit_for_bit(corpus: Path, tmp_path: Path) -> None:
    steps = {"trainer.train_iterations": 3}
    losses = values(train_small(corpus, tmp_path / "run", EXACT, steps))
    config = prepare_data(TransformerConfig.from_dict(nested(settings_of(corpus, tmp_path / "run", EXACT, steps))))
    session = Session(recipe_of(config, *load_datasets(config)), config.topology, Topology.single())
    assert isinstance(session.learner, Learner)
    assert [session.step(step).loss for step in (1, 2, 3)] == losses
