"""TrainingConfig and TrainingGroupConfig: the loss, and how groups of parameters are trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field

from scaling.core import (
    BaseConfig,
    ConfigFamily,
    GroupPattern,
    LearningRateSchedulerConfig,
    OnResume,
    ParameterGroup,
    Problem,
    pattern_problems,
)


class LossFunctionConfig(ConfigFamily):
    """The loss function that is minimised."""

    kind_key: ClassVar[str] = "loss_type"
    default_kind: ClassVar[str | None] = "cross_entropy_loss"


class CrossEntropyLossConfig(LossFunctionConfig):
    """Cross entropy of the next token: the sum over all valid tokens of the global batch divided by their number."""

    loss_type: str = "cross_entropy_loss"
    """The kind of loss."""
    z_loss: float = Field(default=0.0, ge=0)
    """Adds to the loss, in training, this times the square of log Z of each token, where Z is the sum of its
    exponentiated logits. This keeps logits from drifting; 1e-4 is usual. 0: off."""
    chunk_size: Annotated[int | None, OnResume.RUNTIME] = Field(default=None, ge=1)
    """Number of tokens of a micro-batch whose logits exist at a time; over several model ranks, twice as many.
    Gradients are computed in the same pass: one as large as the head's matrix, in at least float32, is kept for each
    micro-batch that awaits its backward pass (one under 1F1B, all of a step where all forward passes come first). null:
    a number that is fast: as many as have 16 MiB of float32 logits on a CPU, but at least 128; 512 MiB on a GPU, but at
    least 1024."""


class ContrastiveLossConfig(LossFunctionConfig):
    """Contrastive loss of embeddings."""

    loss_type: str = "contrastive_loss"
    """The kind of loss."""
    number_of_hard_negatives: int = Field(default=1, ge=0)
    """Negatives given with each sample."""
    use_instructions: bool = True
    """Keep the instructions in front of the texts."""
    query_side_only: bool = False
    """Keep the instructions in front of queries only."""
    scale: int = Field(default=1, ge=1)
    """Multiplies the cosine similarities."""
    log_verbose_metrics: bool = True
    """Log similarities and accuracies too."""

    def problems(self) -> Iterator[Problem]:
        """Refuse the loss, which has no embedding head to act on yet."""
        yield Problem("loss_type", "contrastive_loss is not available in this version; use cross_entropy_loss")


class TrainingConfig(BaseConfig):
    """The loss, and settings of the training as a whole."""

    on_resume = OnResume.SCHEDULE

    allow_missing_params_in_optimizer: bool = False
    """true: parameters in no training group stay as they are; false: each must be in exactly one group."""
    use_deterministic_torch_algorithms: bool = False
    """Use only GPU kernels that give the same bits each time, at some cost in speed. CPU kernels always do."""
    loss_function_config: LossFunctionConfig = Field(default_factory=CrossEntropyLossConfig)
    """The loss function that is minimised."""


class TrainingGroupConfig(BaseConfig):
    """Parameters that share a learning rate and weight decay."""

    on_resume = OnResume.SCHEDULE

    group_name: str = Field(min_length=1)
    """Name of the group in metrics; unique."""
    parameters_include: list[str] | None = None
    """Patterns that put a parameter into the group: regular expressions, found anywhere in its name within its layer,
    such as mlp.dense_in.weight. null: all."""
    parameters_exclude: list[str] = Field(default_factory=list)
    """Patterns that keep a parameter out of the group although it is included."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Weights shrink by this times the learning rate in each step. 0: off."""
    independent_weight_decay: bool = False
    """Divide weight_decay by the peak learning rate, so that the decay does not depend on that rate."""
    learning_rate_scheduler: LearningRateSchedulerConfig = Field(default_factory=LearningRateSchedulerConfig)
    """Learning rate of the group."""

    def pattern(self) -> GroupPattern:
        """Return which parameters the group trains, and how."""
        return GroupPattern(
            group=ParameterGroup(
                name=self.group_name,
                learning_rate_scheduler=self.learning_rate_scheduler,
                weight_decay=self.weight_decay,
                independent_weight_decay=self.independent_weight_decay,
            ),
            include=tuple(self.parameters_include or ()),
            exclude=tuple(self.parameters_exclude),
        )

    def problems(self) -> Iterator[Problem]:
        """Check the patterns, and the learning rate that independent weight decay divides by."""
        include = self.parameters_include or []
        yield from pattern_problems("parameters_include", include)
        yield from pattern_problems("parameters_exclude", self.parameters_exclude)
        for pattern in sorted(set(include) & set(self.parameters_exclude)):
            yield Problem("parameters_exclude", f"has {pattern!r}, which parameters_include has too; remove one")
        if self.independent_weight_decay and self.learning_rate_scheduler.learning_rate == 0:
            yield Problem(
                "independent_weight_decay",
                "divides by the peak learning rate, which is 0; set learning_rate, or independent_weight_decay to "
                "false",
            )
