"""Make the recipe of a language model from its configuration, for training and for verifying layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from scaling.core import BaseDataset, ConfigError, LayerSpec, Recipe, Topology
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.groups import freezes_the_rest, group_patterns, grown_tables
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.config.training import CrossEntropyLossConfig, LossFunctionConfig
from scaling.transformer.data.batch import TextSample
from scaling.transformer.flops import flops_per_token
from scaling.transformer.losses import CrossEntropyLoss
from scaling.transformer.model import layer_specs

LayerFunction = Callable[..., Sequence[LayerSpec]]
"""Called as `layer_specs(architecture, topology, seed=seed)`."""


def recipe_of(
    config: TransformerConfig,
    training: BaseDataset[TextSample],
    evaluation: BaseDataset[TextSample] | None = None,
    *,
    layers: LayerFunction = layer_specs,
) -> Recipe:
    """Return everything about a training except its layout. `config` must name the vocabulary (see `prepare_data`).

    A change here applies both to the training and to the verification of its layout.
    """
    architecture, seed = config.transformer_architecture, config.trainer.seed
    return Recipe(
        layers=_Layers(layers, architecture, seed),
        loss=_Loss(config.training.loss_function_config),
        training=training,
        evaluation=evaluation,
        optimizer=config.optimizer,
        groups=group_patterns(config.training_groups, architecture),
        allow_missing=freezes_the_rest(config.training, architecture),
        on_base=architecture.has_methods,
        grown=grown_tables(architecture),
        seed=seed,
        usual_weight=float(config.topology.global_batch_size * architecture.sequence_length),
        tokens_per_sample=architecture.sequence_length,
        flops_per_sample=float(flops_per_token(architecture) * architecture.sequence_length),
    )


@final
@dataclass(frozen=True)
class _Layers:
    """Factory of the layers. Factories of the same layers are equal, unlike partial functions."""

    function: LayerFunction
    architecture: TransformerArchitectureConfig
    seed: int

    def __call__(self, topology: Topology) -> Sequence[LayerSpec]:
        return self.function(self.architecture, topology, seed=self.seed)


@final
@dataclass(frozen=True)
class _Loss:
    """Factory of the loss function."""

    config: LossFunctionConfig

    def __call__(self, topology: Topology) -> CrossEntropyLoss:
        if not isinstance(self.config, CrossEntropyLossConfig):
            raise ConfigError(
                f"training.loss_function_config is a {type(self.config).__name__}, which nothing computes; use "
                "loss_type cross_entropy_loss, or give the recipe a loss of your own"
            )
        return CrossEntropyLoss(z_loss=self.config.z_loss, chunk_size=self.config.chunk_size)
