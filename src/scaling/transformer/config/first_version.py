"""Convert the settings by which version 0.1 of the predecessor chose the trained parameters into training_groups."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from scaling.core import (
    BaseConfig,
    ConfigError,
    LearningRateSchedulerConfig,
    Problem,
    Reading,
    name_in_layer,
    pattern_problems,
    takes_parameter,
    unmatched_patterns,
)
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.model_plan import plan_of

_TRAINING, _RATE, _EMBEDDING_RATE = "training", "learning_rate_scheduler", "embedding_learning_rate_scheduler"
_SEPARATE = "use_separate_lr_on_embeddings"
_BIAS, _NO_BIAS, _EMBEDDING = r"\.bias$", r"(?<!\.bias)$", r"^embedding\.weight$"


class FirstTrainingConfig(BaseConfig):
    """Settings of `training` in version 0.1 that no longer exist."""

    former_names: ClassVar[Mapping[str, str]] = {"use_seperate_lr_on_embeddings": _SEPARATE}

    weight_decay: float = Field(default=1e-4, ge=0)
    """Weight decay of every group except that of biases, which have none."""
    finetune: bool = False
    """Train only the parameters that finetunable_parameters match."""
    finetunable_parameters: list[str] = Field(default_factory=list)
    """Patterns of the trained parameters; each must match one."""
    parameters_exclude: list[str] = Field(default_factory=list)
    """Patterns of parameters to leave out of all groups."""
    use_separate_lr_on_embeddings: bool = False
    """Train the embedding in a group of its own, with embedding_learning_rate_scheduler."""

    def problems(self) -> Iterator[Problem]:
        """Make the checks of version 0.1."""
        yield from pattern_problems("finetunable_parameters", self.finetunable_parameters)
        yield from pattern_problems("parameters_exclude", self.parameters_exclude)
        if self.finetune and not self.finetunable_parameters:
            yield Problem(
                "finetune",
                "is true, but finetunable_parameters names nothing to train; give patterns there, or set it to false",
            )
        if self.finetunable_parameters and not self.finetune:
            yield Problem(
                "finetunable_parameters",
                f"are {self.finetunable_parameters}, but finetune is false; set it to true, or remove them",
            )
        if self.finetune and self.use_separate_lr_on_embeddings:
            yield Problem(
                "use_separate_lr_on_embeddings",
                "is true together with finetune; set one of them to false, or write training_groups",
            )


def _embedding_has_its_rate(
    training: FirstTrainingConfig, embedding_learning_rate_scheduler: LearningRateSchedulerConfig | None
) -> Iterator[Problem]:
    if training.use_separate_lr_on_embeddings and embedding_learning_rate_scheduler is None:
        yield Problem(_EMBEDDING_RATE, "is needed with training.use_separate_lr_on_embeddings; give it")


class _FirstForm(BaseConfig):
    """All settings from which version 0.1 made its groups."""

    cross_checks = (_embedding_has_its_rate,)

    training: FirstTrainingConfig = Field(default_factory=FirstTrainingConfig)
    """Which parameters are trained, and their weight decay."""
    learning_rate_scheduler: LearningRateSchedulerConfig | None = None
    """Learning rate of all groups but the embedding's. null: the default."""
    embedding_learning_rate_scheduler: LearningRateSchedulerConfig | None = None
    """Learning rate of the embedding's group. null: there is none."""


def read_first_version(values: Mapping[str, Any]) -> Reading:
    """Return `values` with training_groups in place of the settings that version 0.1 had for them.

    Where there are none of these settings, the values are returned as they are.
    """
    training = values.get(_TRAINING)
    training = training if isinstance(training, Mapping) else {}
    names = {*FirstTrainingConfig.model_fields, *FirstTrainingConfig.former_names}
    former = {name: value for name, value in training.items() if name in names}
    found = [*(f"{_TRAINING}.{name}" for name in former), *([_EMBEDDING_RATE] if _EMBEDDING_RATE in values else ())]
    if not found:
        return Reading(values)
    rest = {name: value for name, value in values.items() if name not in (_RATE, _EMBEDDING_RATE)}
    if training:
        rest[_TRAINING] = {name: value for name, value in training.items() if name not in former}
    if values.get("training_groups"):
        return Reading(
            rest,
            problems=(
                Problem(
                    "training_groups",
                    f"are given together with {_listed(found)}, of which version 0.1 made groups of its own; remove "
                    "one of the two, from the file or from the command line",
                ),
            ),
        )
    separate = any(former.get(name) is True for name in (*FirstTrainingConfig.former_names, _SEPARATE))
    rates = (_RATE, _EMBEDDING_RATE) if separate else (_RATE,)  # the other one is not used and may be anything
    try:
        form = _FirstForm.from_dict(
            {_TRAINING: former, **{name: values[name] for name in rates if name in values}}, quiet=True
        )
        groups = _not_empty(list(_groups(form, values)), form.training, _parameters(values))
    except ConfigError as error:
        return Reading(rest, problems=error.problems)
    rest["training_groups"] = groups
    what = f"are made of {_listed(found)}, settings of version 0.1; write instead"
    shown = f"training_groups: {json.dumps(groups)}"
    if form.training.finetune:
        rest[_TRAINING]["allow_missing_params_in_optimizer"] = True
        shown += ", and training.allow_missing_params_in_optimizer: true"
    return Reading(rest, notes=(Problem("training_groups", f"{what} {shown}"),))


def _groups(form: _FirstForm, values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the groups in the order of version 0.1; a pattern both wanted and excluded is excluded, as there."""
    training = form.training
    excluded = training.parameters_exclude
    wanted = [pattern for pattern in training.finetunable_parameters if pattern not in excluded]
    decay, rate = training.weight_decay, values.get(_RATE) or {}
    separate = [_EMBEDDING] if training.use_separate_lr_on_embeddings else []
    weights = [pattern for pattern in wanted if pattern != _BIAS]
    if weights or not training.finetune:
        yield _group("weight_decay_params", weights, [_BIAS, *separate, *excluded], decay, rate)
    if _BIAS not in excluded:
        biases = (wanted, [_NO_BIAS, *excluded]) if training.finetune else ([_BIAS], excluded)
        if biases[0]:
            yield _group("no_weight_decay_params", *biases, 0.0, rate)
    if separate and _EMBEDDING not in excluded:
        yield _group("embedding_weight_decay_params", separate, excluded, decay, values[_EMBEDDING_RATE])


def _group(
    name: str, include: Sequence[str], exclude: Sequence[str], decay: float, rate: Mapping[str, Any]
) -> dict[str, Any]:
    patterns = {"parameters_include": list(include), "parameters_exclude": list(dict.fromkeys(exclude))}
    return {
        "group_name": name,
        **{key: found for key, found in patterns.items() if found},
        "weight_decay": decay,
        _RATE: dict(rate),
    }


def _not_empty(
    groups: list[dict[str, Any]], training: FirstTrainingConfig, names: set[str] | None
) -> list[dict[str, Any]]:
    """Return the groups that take a parameter, all that version 0.1 kept; refuse patterns that match nothing."""
    if names is None:
        return groups
    unmatched = unmatched_patterns(training.finetunable_parameters, names)
    problems = [
        Problem(f"{_TRAINING}.finetunable_parameters.{index}", unmatched[pattern])
        for index, pattern in enumerate(training.finetunable_parameters)
        if pattern in unmatched
    ]
    kept = [
        group
        for group in groups
        if any(
            takes_parameter(name, group.get("parameters_include", ()), group.get("parameters_exclude", ()))
            for name in names
        )
    ]
    if not problems and not kept:
        problems = [Problem(f"{_TRAINING}.parameters_exclude", "leaves nothing to train; remove what is to be trained")]
    if problems:
        raise ConfigError(problems)
    return kept


def _parameters(values: Mapping[str, Any]) -> set[str] | None:
    """Return the names of parameters within their layers; None for an invalid section, which is reported elsewhere."""
    section = values.get("transformer_architecture", {})
    try:
        architecture = TransformerArchitectureConfig.from_dict(section, quiet=True)
    except (ConfigError, TypeError, ValueError):  # the last two where it is no section
        return None
    return {name_in_layer(parameter.name) for parameter in plan_of(architecture).parameters()}


def _listed(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
