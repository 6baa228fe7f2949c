"""A configuration whose first steps move the weights by more than rounding does, and the tolerance between layouts."""

from __future__ import annotations

from scaling.core import AdamWConfig, LearningRateSchedulerConfig
from scaling.transformer.config.root import TransformerConfig

LEAST_EPS = 1e-3
"""In float32, gradients agree to some 1e-6 of the largest; weights then agree to 1e-5 at usual learning rates."""

FLOAT8_TOLERANCE = 4e-6
"""2^-18: accepted difference, relative to the largest number, where layouts have 8-bit scales of their own."""


def tolerance_of(config: TransformerConfig, precision: str) -> float | None:
    """Return the accepted relative difference; None: the usual one of that precision."""
    coarse = precision == "float64" and config.transformer_architecture.float8_plan.scales_micro_batches
    return FLOAT8_TOLERANCE if coarse else None


def comparable(config: TransformerConfig) -> TransformerConfig:
    """Return the configuration with updates that move the weights and can be compared.

    Learning rates are constant: without warm-up, the first steps move the weights. `optimizer.eps` is above the
    rounding: otherwise, AdamW would scale a gradient of nothing but rounding up to a step of the learning rate, and
    such gradients exist (of the keys' bias, which the softmax cancels). Gradients and moments are not rounded to
    bfloat16: the last bit of float32 can decide to which neighbour, and neighbours are 2^-8 apart.
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
        eps = max(optimizer.eps, LEAST_EPS)
        optimizer = optimizer.model_copy(
            update={"eps": eps, "exp_avg_dtype": "float32", "exp_avg_sq_dtype": "float32", "grad_dtype": "float32"}
        )
    return config.model_copy(update={"training_groups": groups, "optimizer": optimizer})
