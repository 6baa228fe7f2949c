"""From the configuration of a language model to what `verify_layout` trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from scaling.core import (
    AdamWConfig,
    BaseDataset,
    LayerSpec,
    LearningRateSchedulerConfig,
    Recipe,
    Topology,
)
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.batch import TextCollator, TextSample
from scaling.transformer.losses import CrossEntropyLoss
from scaling.transformer.model import layer_specs
from scaling.transformer.train import group_patterns
from scaling.transformer.verify.synthetic import SyntheticText

LEAST_EPS = 1e-3
"""In float32, gradients agree to some 1e-6 of the largest; weights then agree to 1e-5 at usual learning rates."""

LayerFunction = Callable[..., Sequence[LayerSpec]]
"""Called as `layer_specs(architecture, topology, seed=seed)`."""


def recipe_of(
    config: TransformerConfig,
    *,
    training: BaseDataset[TextSample] | None = None,
    evaluation: BaseDataset[TextSample] | None = None,
    layers: LayerFunction = layer_specs,
) -> Recipe:
    """Return the model, loss, data and optimizer of a configuration; the data are synthetic unless given."""
    architecture = config.transformer_architecture
    return Recipe(
        layers=partial(_layers, layers, architecture, config.trainer.seed),
        loss=partial(CrossEntropyLoss, architecture.vocab_size),
        training=training or synthetic_text(config, 1000),
        evaluation=evaluation,
        optimizer=config.optimizer,
        groups=tuple(group_patterns(config)),
        allow_missing=config.training.allow_missing_params_in_optimizer,
        seed=config.trainer.seed,
        usual_weight=float(config.topology.global_batch_size * architecture.sequence_length),
        precision=architecture.precision.value,
    )


def synthetic_text(config: TransformerConfig, samples: int, *, seed: int = 0) -> SyntheticText:
    """Return synthetic data for the vocabulary, sequence length and document rules of a configuration."""
    architecture = config.transformer_architecture
    collator = TextCollator(
        architecture.vocab_size,
        config.data.eod_token_id or 0,
        reset_attention_mask=architecture.reset_attention_mask,
        reset_position_ids=architecture.reset_position_ids,
    )
    return SyntheticText(samples, architecture.sequence_length, collator, seed)


def comparable(config: TransformerConfig) -> TransformerConfig:
    """Return the configuration with updates that move the weights and can be compared.

    Learning rates are constant: without warm-up, the first steps move the weights. `optimizer.eps` is above the
    rounding: AdamW would scale a gradient that is nothing but rounding up to a step of the learning rate, and some are
    (the bias of the keys, which the softmax does not feel).
    """
    groups = [
        group.model_copy(
            update={
                "learning_rate_scheduler": LearningRateSchedulerConfig(
                    learning_rate=group.learning_rate_scheduler.learning_rate
                )
            }
        )
        for group in config.training_groups
    ]
    optimizer = config.optimizer
    if isinstance(optimizer, AdamWConfig):
        optimizer = optimizer.model_copy(update={"eps": max(optimizer.eps, LEAST_EPS)})
    return config.model_copy(update={"training_groups": groups, "optimizer": optimizer})


def _layers(
    function: LayerFunction, architecture: TransformerArchitectureConfig, seed: int, topology: Topology
) -> Sequence[LayerSpec]:
    return function(architecture, topology, seed=seed)
