"""Find the family of a config.json, or a family that can express an architecture."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from scaling.core import ConfigError, Problem, nearest
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.hf.families import FAMILIES
from scaling.transformer.hf.family import Family
from scaling.transformer.hf.fields import shown
from scaling.transformer.hf.settings import FOLLOWS_LENGTH, resolved
from scaling.transformer.plan.model import ModelPlan

BY_TYPE: Final[Mapping[str, Family]] = {family.model_type: family for family in FAMILIES}

NOT_THE_MODEL: Final[Mapping[str, Any]] = {
    "precision": "float32",
    "dropout_embedding": 0.0,
    "dropout_attention_probs": 0.0,
    "dropout_after_attention": 0.0,
    "dropout_after_mlp": 0.0,
    "attention_qkv_in_one": False,
}
"""Settings of training and computation that do not change the model, with the values used to compare models."""


def family_of(config: Mapping[str, Any], *, source: str = "config.json") -> Family:
    """Return the family of a config.json; raise `ConfigError` with everything in it that is not supported."""
    family = BY_TYPE.get(str(config.get("model_type")))
    if family is None:
        raise ConfigError(_unknown_type(config), source=source)
    problems = [*_class_problems(family, config), *family.problems(config)]
    if not problems:
        problems = list(_section_problems(family, config))
    if problems:
        raise ConfigError(problems, source=source)
    return family


def inert(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a config.json that can be left out without changing the section, to restore in an export."""
    return family_of(config).inert(config)


def family_for(architecture: TransformerArchitectureConfig, *, model_type: str | None = None) -> Family:
    """Return a family that can express an architecture exactly, trying `model_type` first; else raise `ConfigError`."""
    families = sorted(FAMILIES, key=lambda family: family.model_type != model_type)
    for family in families:
        if _expressed(architecture, family):
            return family
    nearest_model, differences = min(
        ((family.model_type, found) for family in families if (found := _differences(architecture, family))),
        key=lambda pair: len(pair[1]),
        default=("", {}),
    )
    problems = [
        Problem(f"transformer_architecture.{key}", f"is {shown(mine)}, but in a {nearest_model} model {shown(theirs)}")
        for name, pair in differences.items()
        for key, mine, theirs in _named(architecture, name, *pair)
    ]
    nothing = f"no family of Hugging Face models that is built can express this architecture ({', '.join(BY_TYPE)})"
    raise ConfigError([Problem("", nothing), *problems])


def _named(
    architecture: TransformerArchitectureConfig, key: str, mine: Any, theirs: Any
) -> Iterator[tuple[str, Any, Any]]:
    """Yield a difference with the names and values used in a configuration."""
    if key != "layers":
        yield key, architecture.mlp_type.value if key == "mlp_type" else mine, theirs
        return
    own = {"window": "local_attention_window_size", "rotary": "rotary"}
    for what, name in own.items():
        pair = next(((a[what], b[what]) for a, b in zip(mine, theirs, strict=False) if a[what] != b[what]), None)
        if pair is not None:
            yield (f"attention_kinds.*.{what}" if architecture.attention_kinds else name), *pair


def _unknown_type(config: Mapping[str, Any]) -> Problem:
    names, given = ", ".join(BY_TYPE), config.get("model_type")
    if given is None:
        return Problem("model_type", f"is missing, so the family of the model is unknown; add one of {names}")
    near = nearest(given, BY_TYPE) if isinstance(given, str) else None
    # Mixtral is not a misspelled Mistral: `architectures` shows that it is another model.
    is_slip = near is not None and config.get("architectures") in (None, [BY_TYPE[near].architecture])
    hint = f"; did you mean {near}?" if is_slip else ""
    if "text_config" in config:
        hint = "; it has other parts beside its language model (text_config): save that alone, and read what was saved"
    return Problem("model_type", f"is {shown(given)}, which is not built; these are: {names}{hint}")


def _class_problems(family: Family, config: Mapping[str, Any]) -> Iterator[Problem]:
    given = config.get("architectures")
    if given not in (None, [family.architecture]):
        yield Problem(
            "architectures",
            f"is {shown(given)}, but of {family.model_type} models only {family.architecture} is built: the language "
            "model with a head over the vocabulary",
        )
    program = config.get("auto_map")
    if program and not _is_named_alike(program, family):
        yield Problem(
            "auto_map",
            f"is {shown(program)}: a program beside the model defines it, which is not run; remove the field where "
            f"the model is a plain {family.architecture}",
        )


def _is_named_alike(program: Any, family: Family) -> bool:
    """Return whether the classes of `auto_map` are the family's own, from before `transformers` had them."""
    if not isinstance(program, dict):
        return False
    stem = family.architecture.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    own = {"AutoConfig": f"{stem}Config", "AutoModel": f"{stem}Model", "AutoModelForCausalLM": family.architecture}
    return all(
        isinstance(value, str) and value.rpartition(".")[2] == own.get(name)
        for name, value in program.items()
        if name == "AutoConfig" or name.startswith("AutoModel")
    )


def _section_problems(family: Family, config: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the values that the section does not accept, under the names of their fields."""
    try:
        TransformerArchitectureConfig.from_dict(family.section(config))
    except ConfigError as error:
        fields = family.fields(config)
        for problem in error.problems:
            key = re.sub(r"^attention_kinds\.[^.]+", "attention_kinds", problem.path)  # whatever the kind is called
            while key not in fields and "." in key:
                key = key.rpartition(".")[0]
            yield Problem(fields.get(key, ""), f"as transformer_architecture.{problem.path}, it {problem.message}")


def _expressed(architecture: TransformerArchitectureConfig, family: Family) -> bool:
    again = _again(architecture, family)
    return again is not None and _model(again) == _model(architecture)


def _again(architecture: TransformerArchitectureConfig, family: Family) -> TransformerArchitectureConfig | None:
    """Return an architecture as read back from a family's configuration of it, or None where that is not valid."""
    config = family.config(architecture)
    if any(True for _ in family.problems(config)):
        return None
    try:
        return TransformerArchitectureConfig.from_dict(family.section(config))
    except ConfigError:
        return None


def _model(architecture: TransformerArchitectureConfig) -> ModelPlan:
    """Return the plan of a model, without the settings that change only its training or its kernel."""
    usual = TransformerArchitectureConfig()
    kernel = usual.masked_softmax.model_copy(update={"scale": architecture.masked_softmax.scale})
    update = {
        **{key: type(getattr(usual, key))(value) for key, value in NOT_THE_MODEL.items()},
        "masked_softmax": kernel,
        "dropout_stream": usual.dropout_stream,
        "initialization": usual.initialization,
    }
    if not follows_length(architecture):
        update["sequence_length"] = 1
    return plan_of(architecture.model_copy(update=update))


def follows_length(architecture: TransformerArchitectureConfig) -> bool:
    """Return whether another sequence length would change the model."""
    return any(layer["rotary"]["type"] in FOLLOWS_LENGTH for layer in _settings(architecture)["layers"])


def _settings(architecture: TransformerArchitectureConfig) -> dict[str, Any]:
    return resolved(architecture.as_dict())


def _differences(architecture: TransformerArchitectureConfig, family: Family) -> dict[str, tuple[Any, Any]]:
    """Return the settings that change when a family writes them and reads them back: (ours, theirs)."""
    again = _again(architecture, family)
    if again is None:
        return {}
    mine, theirs = _settings(architecture), _settings(again)
    return {key: (mine[key], theirs[key]) for key in mine if key not in NOT_THE_MODEL and mine[key] != theirs[key]}
