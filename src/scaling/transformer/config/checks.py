"""Checks between sections: each function runs once the sections it names are valid by themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import gcd

from scaling.core import (
    FLOAT8_MULTIPLE,
    Device,
    LearningRateSchedulerConfig,
    OptimizerConfig,
    Problem,
    TopologyConfig,
    vanishing_constants,
)
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.choices import NormPlacement, Precision
from scaling.transformer.config.data import DataConfig
from scaling.transformer.config.methods import method_problems
from scaling.transformer.config.model_plan import base_plan_of, plan_of
from scaling.transformer.config.record_checks import soft_prompt_has_its_places
from scaling.transformer.config.training import ContrastiveLossConfig, TrainingConfig, TrainingGroupConfig
from scaling.transformer.plan.attention import AttentionPlan
from scaling.transformer.plan.parts import FeedForwardPlan, PartPlan


def methods_fit_the_model(transformer_architecture: TransformerArchitectureConfig) -> Iterator[Problem]:
    """Check that the modules that fine-tuning methods name exist, and that the methods fit them."""
    for problem in method_problems(base_plan_of(transformer_architecture), transformer_architecture):
        yield Problem(f"transformer_architecture.{problem.path}", problem.message)


def widths_are_divisible(
    transformer_architecture: TransformerArchitectureConfig, topology: TopologyConfig
) -> Iterator[Problem]:
    """Check that each tensor-parallel rank has the same number of heads and an equal part of the MLP."""
    parts, divisors = topology.model_parallel_size, plan_of(transformer_architecture).divisors
    heads, width = divisors.heads, divisors.width
    possible = [str(size) for size in range(1, min(parts, 1024) + 1) if gcd(heads, width) % size == 0]
    remedy = f"set topology.model_parallel_size to {' or '.join(possible)}"
    if heads % parts:
        yield Problem(
            "transformer_architecture.num_attention_heads",
            f"is {heads}, but must be divisible by topology.model_parallel_size ({parts}); {remedy}",
        )
    for kv_heads in divisors.kv_heads:
        if heads % parts == 0 and kv_heads % parts and parts % kv_heads:
            yield Problem(
                "transformer_architecture.attention_num_kv_heads",
                f"is {kv_heads}, but must be a multiple of topology.model_parallel_size ({parts}), or divide it; set "
                f"either to {gcd(kv_heads, parts)}",
            )
    if width % parts:
        section = transformer_architecture
        up = section.mlp_size_multiple_of > 1
        name, said = "mlp_size", f"is {section.mlp_size}{f', rounded up to {width},' if up else ','} but"
        if section.mlp_size is None:
            product = f"times hidden_size ({section.hidden_size}){', rounded up,' if up else ''} = {width}"
            name, said = "mlp_factor", f"is {section.mlp_factor:g}, but {product}"
        yield Problem(
            f"transformer_architecture.{name}",
            f"{said} must be divisible by topology.model_parallel_size ({parts}); {remedy}",
        )


def sequence_is_divisible(
    transformer_architecture: TransformerArchitectureConfig, topology: TopologyConfig
) -> Iterator[Problem]:
    """Check that each rank has an equal part of the sequence under sequence parallelism."""
    length, parts = plan_of(transformer_architecture).divisors.sequence, topology.model_parallel_size
    if topology.sequence_parallel and length % parts:
        yield Problem(
            "transformer_architecture.sequence_length",
            f"is {length}, but must be divisible by topology.model_parallel_size ({parts}) with "
            f"topology.sequence_parallel; the nearest that is: {max(1, round(length / parts)) * parts}",
        )


def float8_sizes_are_multiples(
    transformer_architecture: TransformerArchitectureConfig, topology: TopologyConfig
) -> Iterator[Problem]:
    """Check that sizes in 8-bit products are multiples of 16, as kernels need; the emulation on CPUs takes any size."""
    plan = plan_of(transformer_architecture)
    float8, multiple = plan.arithmetic.float8, FLOAT8_MULTIPLE
    if topology.device is Device.CPU or not float8.recipes:
        return
    parts: list[PartPlan] = [*plan.parts(AttentionPlan), *plan.parts(FeedForwardPlan)]
    odd = list(dict.fromkeys(float8.odd_sizes(parts, topology.model_parallel_size, multiple)))
    if odd:
        yield Problem(
            "transformer_architecture",
            f"has fp8_config sections, but each process has {' and '.join(odd)}, which must be multiples of "
            f"{multiple}; change them or topology.model_parallel_size, or remove the sections of these layers",
        )
    tokens = topology.micro_batch_size * plan.sequence
    if tokens % multiple and any(recipe.grad_weight is not None for recipe in float8.recipes):
        yield Problem(
            "topology.micro_batch_size",
            f"is {topology.micro_batch_size}, which makes micro-batches of {tokens} tokens, but 8-bit gradients of "
            f"weights need a multiple of {multiple}; change it, or set dtypes_grad_weight of the fp8_config to null",
        )


def stages_have_layers(
    transformer_architecture: TransformerArchitectureConfig, topology: TopologyConfig
) -> Iterator[Problem]:
    """Check that no pipeline stage is empty, and that explicit boundaries end with the last layer."""
    layers, stages = plan_of(transformer_architecture).num_layers, topology.pipe_stages
    bounds = topology.pipe_partition_overwrite
    counted = (
        f"{layers} layers (embedding, {transformer_architecture.num_layers} transformer layers"
        f"{', norm' if transformer_architecture.norm_placement is not NormPlacement.AFTER_SUM else ''}"
        f"{', head' if transformer_architecture.lm_head else ''})"
    )
    if stages > layers:
        yield Problem(
            "topology.pipe_parallel_size",
            f"is {topology.pipe_parallel_size}, with pipe_chunks_per_rank {topology.pipe_chunks_per_rank} that is "
            f"{stages} stages, but there are {counted}; use at most {layers} stages, or raise "
            "transformer_architecture.num_layers",
        )
    elif bounds is not None and bounds[-1] != layers:
        yield Problem(
            "topology.pipe_partition_overwrite",
            f"ends with {bounds[-1]}, but the model has {counted}; end with {layers}",
        )


def float16_is_scaled(
    transformer_architecture: TransformerArchitectureConfig, optimizer: OptimizerConfig
) -> Iterator[Problem]:
    """Check that float16 has loss scaling, without which small gradients vanish."""
    if transformer_architecture.precision is Precision.FLOAT16 and optimizer.loss_scaler.enable is False:
        yield Problem(
            "optimizer.loss_scaler.enable",
            "is false, but float16 gradients vanish without loss scaling; remove it, or set "
            "transformer_architecture.precision to bfloat16",
        )


def constants_do_not_vanish(
    transformer_architecture: TransformerArchitectureConfig, optimizer: OptimizerConfig
) -> Iterator[Problem]:
    """Check that constants of the update rule are not zero in the type of the master weights."""
    double = transformer_architecture.precision is Precision.FLOAT64
    yield from vanishing_constants(optimizer, precision="float64" if double else "float32")


def loss_has_its_head(
    transformer_architecture: TransformerArchitectureConfig, training: TrainingConfig
) -> Iterator[Problem]:
    """Check that cross entropy has the language model head, which computes its logits."""
    if not transformer_architecture.lm_head and not isinstance(training.loss_function_config, ContrastiveLossConfig):
        yield Problem("transformer_architecture.lm_head", "is false, but cross entropy needs it; set it to true")


def documents_end_in_the_vocabulary(
    transformer_architecture: TransformerArchitectureConfig, data: DataConfig
) -> Iterator[Problem]:
    """Check that the model knows the token that ends a document."""
    vocab_size, token = transformer_architecture.vocab_size, data.eod_token_id
    if vocab_size and token is not None and token >= vocab_size:
        yield Problem(
            "data.eod_token_id",
            f"is {token}, outside the vocabulary of transformer_architecture.vocab_size ({vocab_size}); use 0 to "
            f"{vocab_size - 1}",
        )


def corpus_brings_its_tokenizer(
    transformer_architecture: TransformerArchitectureConfig, data: DataConfig
) -> Iterator[Problem]:
    """Check that no other tokenizer is named for a corpus that the library builds, which has its own."""
    vocab_file = transformer_architecture.vocab_file
    if data.corpus is not None and vocab_file is not None:
        yield Problem(
            "transformer_architecture.vocab_file",
            f"is {str(vocab_file)!r}, but data.corpus ({data.corpus.value}) has a tokenizer of its own; remove one",
        )


def groups_are_given_once(
    training_groups: list[TrainingGroupConfig], learning_rate_scheduler: LearningRateSchedulerConfig | None
) -> Iterator[Problem]:
    """Check that parameters are grouped in one way only, and that groups have different names."""
    if training_groups and learning_rate_scheduler is not None:
        yield Problem(
            "learning_rate_scheduler",
            f"is the short form for a single group, but training_groups has {len(training_groups)}; remove it, or "
            "move it into the groups",
        )
    first: dict[str, int] = {}
    for index, group in enumerate(training_groups):
        if group.group_name in first:
            yield Problem(
                f"training_groups.{index}.group_name",
                f"{group.group_name!r} is the name of training_groups.{first[group.group_name]} too; choose another",
            )
        first.setdefault(group.group_name, index)


CHECKS: tuple[Callable[..., Iterable[Problem]], ...] = (
    methods_fit_the_model,
    widths_are_divisible,
    sequence_is_divisible,
    float8_sizes_are_multiples,
    stages_have_layers,
    float16_is_scaled,
    constants_do_not_vanish,
    loss_has_its_head,
    documents_end_in_the_vocabulary,
    corpus_brings_its_tokenizer,
    soft_prompt_has_its_places,
    groups_are_given_once,
)
