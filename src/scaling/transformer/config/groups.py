"""Which parameters are trained: those that training groups name, else those that fine-tuning methods add. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from scaling.core import ConfigError, GroupPattern, Problem, check_groups, first_of, name_in_layer
from scaling.transformer.config.architecture import ArchitectureConfig
from scaling.transformer.config.finetuning import MethodsConfig
from scaling.transformer.config.methods import method_problems
from scaling.transformer.config.model_plan import base_plan_of, plan_of
from scaling.transformer.config.training import TrainingConfig, TrainingGroupConfig
from scaling.transformer.plan.parameters import ParameterPlan

_SHOWN = 3


def group_patterns(groups: Sequence[TrainingGroupConfig], architecture: ArchitectureConfig) -> tuple[GroupPattern, ...]:
    """Return which parameters the groups train, and how.

    Where methods are configured, a group without patterns takes the parameters that these train, and no others.
    """
    found = tuple(group.pattern() for group in groups)
    if not architecture.has_methods:
        return found
    trained = tuple(_patterns_of_methods(architecture))
    return tuple(pattern if pattern.include else replace(pattern, include=trained) for pattern in found)


def freezes_the_rest(training: TrainingConfig, methods: MethodsConfig) -> bool:
    """Return whether parameters in no group stay as they are, as the base does with fine-tuning methods."""
    return training.allow_missing_params_in_optimizer or methods.has_methods


def grown_tables(architecture: ArchitectureConfig) -> tuple[str, ...]:
    """Return patterns of tables that may have more rows than in the base, where trained rows are stored separately.

    New tokens are beyond the base's table. Their rows are separate parameters; extra rows of the table are not used.
    """
    return (r"^layers\.\d+\.(embedding|linear)\.weight$",) if architecture.finetunable_token_ids else ()


def free_on_base(architecture: ArchitectureConfig) -> tuple[str, ...]:
    """Return paths of settings that may differ from the base's, although a change of them normally means another model.

    The end of documents concerns only the data, which differ from the base's; new tokens come with a new tokenizer.
    """
    new_tokens = ("transformer_architecture.vocab_size", "fingerprints.tokenizer")
    return ("data.eod_token_id", *(new_tokens if architecture.finetunable_token_ids else ()))


def trained_parameters(
    groups: Sequence[TrainingGroupConfig], architecture: ArchitectureConfig
) -> Iterator[ParameterPlan]:
    """Yield the parameters that some group takes, with their names in the model."""
    patterns = group_patterns(groups, architecture)
    for parameter in plan_of(architecture).parameters():
        if any(pattern.matches(name_in_layer(parameter.name)) for pattern in patterns):
            yield parameter


def _patterns_of_methods(architecture: ArchitectureConfig) -> Iterator[str]:
    """Yield patterns that are found in the names of the parameters that the methods train."""
    for kind, section in (
        ("lora", architecture.lora_config),
        ("ia3", architecture.ia3_config),
        ("bitfit", architecture.bitfit_bias_config),
        ("adapter", architecture.adapter_config),
        ("softprompt", architecture.softprompt_config),
    ):
        if section is None or (kind == "bitfit" and not _adds_biases(architecture)):
            continue
        yield rf"(^|\.){kind}_{re.escape(section.name)}\."
    if architecture.finetunable_token_ids:
        yield r"(^|\.)token_rows\."
    if architecture.bitfit_bias_config is not None and any(_own_biases(architecture)):
        yield r"^(?!.*(^|\.)(lora|bitfit)_).*\.bias$"


def _adds_biases(architecture: ArchitectureConfig) -> bool:
    return architecture.bitfit_bias_config is not None and bool(architecture.bitfit_bias_config.add_to)


def _own_biases(architecture: ArchitectureConfig) -> Iterator[str]:
    names = (parameter.name for _, layer in base_plan_of(architecture).runs for parameter in layer.parameters())
    return (name for name in names if name.endswith(".bias"))


def group_problems(
    groups: Sequence[TrainingGroupConfig], architecture: ArchitectureConfig, training: TrainingConfig
) -> Iterator[Problem]:
    """Yield parameters in no group or in several, groups and patterns that take nothing, and methods without a use."""
    if any(method_problems(base_plan_of(architecture), architecture)):  # to be corrected first
        return
    patterns = group_patterns(groups, architecture)
    names = [parameter.name for parameter in plan_of(architecture).parameters()]
    try:
        check_groups(names, patterns, allow_missing=freezes_the_rest(training, architecture))
    except ConfigError as error:
        yield from error.problems
        return
    if not architecture.has_methods:
        return
    trained = {parameter.name for parameter in trained_parameters(groups, architecture)}
    base = [parameter.name for parameter in base_plan_of(architecture).parameters()]
    if trained.issuperset(base):
        taking = [
            f"{pattern.group.name!r} ({', '.join(pattern.include)})"
            for pattern in patterns
            if any(pattern.matches(name_in_layer(name)) for name in base)
        ]
        yield Problem(
            "training_groups",
            f"train every parameter of the base although a method of fine-tuning is configured: group "
            f"{', '.join(taking)} takes all {len(base)} of them, such as {first_of(base, _SHOWN)}; give it narrower "
            "patterns (without any a group takes what the method adds), or remove the method",
        )
    own = set(names) - set(base)
    if own and not own & trained:
        yield Problem(
            "training_groups",
            f"train nothing of what the methods of fine-tuning add, such as {first_of(sorted(own), _SHOWN)}; remove "
            "parameters_include from a group, which then takes all of it, or remove the method",
        )
    elif own - trained:
        left = first_of(sorted(own - trained), _SHOWN)
        yield Problem(
            "training_groups",
            f"leave out part of what the methods of fine-tuning add, such as {left}, which no base has; put it "
            "into a group, or have less added (parallel_modules)",
        )
