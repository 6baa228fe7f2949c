"""An adapter of PEFT and an adapter checkpoint of ours: configuration and tensors, both ways. Nothing is read here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final

from scaling.core import CheckpointError, ConfigError, first_of
from scaling.transformer.hf.peft import ia3, lora, token_rows
from scaling.transformer.hf.peft.base_tensors import Base, read_whole, write_norms, write_whole
from scaling.transformer.hf.peft.fields import TASK, complete, problems_of
from scaling.transformer.hf.peft.modules import Modules
from scaling.transformer.hf.peft.stored import PREFIX, PREFIX_BESIDE_PROMPT, PROMPT, AdapterTensors
from scaling.transformer.hf.peft.values import Values

NAMES: Final[Mapping[str, str]] = {"lora_config": "lora", "ia3_config": "ia3", "softprompt_config": "softprompt"}
"""Names given to adapters that are read; in files of PEFT they have none."""

_METHODS: Final = ("lora_config", "ia3_config", "softprompt_config", "finetunable_token_ids")
_NAMED: Final = 5


@final
@dataclass(frozen=True)
class Ours:
    """An adapter as one of our checkpoints holds it."""

    sections: Mapping[str, Any]
    """Sections of `transformer_architecture` for the methods."""
    tensors: Mapping[str, Values]


@final
@dataclass(frozen=True)
class Theirs:
    """An adapter as a folder of PEFT holds it."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Values]


def from_peft(theirs: Theirs, modules: Modules, base: Base, *, config_file: str, weights_file: str) -> Ours:
    """Translate an adapter of PEFT on a base of these modules.

    Raises:
        ConfigError: The configuration is not of an adapter that is built.
        CheckpointError: The tensors are not those of the configuration, or of the base.
    """
    problems = list(problems_of(theirs.config))
    if problems:
        raise ConfigError(problems, source=config_file)
    settings = complete(theirs.config)
    adapter = AdapterTensors(theirs.tensors, modules, source=weights_file, prefix=_prefix(theirs.config["peft_type"]))
    sections: dict[str, Any] = {}
    tensors: dict[str, Values] = {}
    method = theirs.config["peft_type"]
    if method == "LORA":
        adapters = lora.read_lora(settings, adapter, modules)
        name = NAMES["lora_config"]
        sections["lora_config"] = {"name": name, **lora.section_of(settings, adapters, modules)}
        tensors |= {key: values for part, one in adapters.items() for key, values in one.tensors(part, name)}
    elif method == "IA3":
        scales = ia3.read_ia3(settings, adapter, modules)
        name = NAMES["ia3_config"]
        sections["ia3_config"] = {"name": name, **ia3.section_of(scales, modules)}
        tensors |= {f"{part}.ia3_{name}.scale": values for part, (values, _) in scales.items()}
    elif method == "PROMPT_TUNING":
        prompt = _prompt(settings, adapter, modules)
        name = NAMES["softprompt_config"]
        sections["softprompt_config"] = {"name": name, "n_tokens": prompt.shape[0]}
        tensors[f"layers.0.softprompt_{name}.weight"] = prompt.times(modules.prompt_scale)
    ids, rows = token_rows.read_rows(settings, adapter, modules, base)
    if ids:
        sections["finetunable_token_ids"] = ids
    whole = read_whole(adapter, modules, settings, base)
    adapter.require_empty(method)
    return Ours(sections, {**tensors, **rows, **whole})


def _prompt(settings: Mapping[str, Any], adapter: AdapterTensors, modules: Modules) -> Values:
    embedding = modules.by_role("embedding")
    assert embedding is not None
    prompt, shape = adapter.take_prompt(), (settings["num_virtual_tokens"], embedding.outputs)
    if prompt is None:
        raise CheckpointError(f"{adapter.source} lacks {PROMPT}; the file is incomplete, or of another adapter")
    if prompt.shape != shape:
        raise CheckpointError(
            f"{adapter.source}: {PROMPT} has the shape {list(prompt.shape)}, but on this base, with num_virtual_tokens "
            f"{shape[0]}, it would be {list(shape)}; the adapter is for another base, or its configuration was changed"
        )
    return prompt


def to_peft(ours: Ours, modules: Modules, base: Base) -> Theirs:
    """Translate an adapter in one of our checkpoints.

    Raises:
        ConfigError: PEFT has no form for the adapter.
        CheckpointError: The base is needed and missing.
    """
    given = {name: value for name, value in ours.sections.items() if value}
    without_form = ["adapter_config"] if "adapter_config" in given else []
    if "bitfit_bias_config" in given and ("lora_config" not in given or given["bitfit_bias_config"].get("add_to")):
        without_form.append("bitfit_bias_config")  # the base's own biases are a field of LoRA
    if without_form:
        raise ConfigError(
            f"the checkpoint is of {' and '.join(without_form)}, which PEFT has no form for; merge it into its base "
            "where that can be done (scaling checkpoint merge) and export the model"
        )
    methods = [name for name in _METHODS if name in given]
    with_rows = methods[:1] == ["lora_config"] and methods[1:] == ["finetunable_token_ids"]
    if len(methods) > 1 and not with_rows:
        raise ConfigError(
            f"the checkpoint is of {' and '.join(methods)} at once, which PEFT has no form for; merge it into its base "
            "(scaling checkpoint merge) and export the model"
        )
    return _with_rest(_written(given, ours, modules, base), ours, modules, base)


@dataclass(frozen=True)
class _Written:
    """The PEFT form of the methods of a checkpoint."""

    method: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Values] = field(default_factory=dict)
    """Tensors by their names within the model."""
    used: frozenset[str] = frozenset()
    """Names of our tensors that they are made of."""
    adapted: tuple[str, ...] = ()
    """Names of our modules that are adapted."""


def _written(given: Mapping[str, Any], ours: Ours, modules: Modules, base: Base) -> _Written:
    if "ia3_config" in given:
        section = given["ia3_config"]
        scales = ia3.ia3_in(section, ours.tensors, modules)
        used = frozenset(f"{part}.ia3_{section['name']}.scale" for part in scales)
        return _Written("IA3", *ia3.write_ia3(scales, modules), used, tuple(scales))
    if "softprompt_config" in given:
        return _prompt_of(given["softprompt_config"], ours, modules)
    found = _Written()
    if "lora_config" in given:
        section = given["lora_config"]
        own = lora.lora_in(section, ours.tensors)
        used = frozenset(key for part, one in own.items() for key, _ in one.tensors(part, section["name"]))
        found = _Written("LORA", *lora.write_lora(section, own, modules), used, tuple(own))
    ids = given.get("finetunable_token_ids")
    if not ids:
        return found
    config, rows = token_rows.write_rows(ids, ours.tensors, modules, base, alone=not found.method)
    used = found.used | {key for key in ours.tensors if key.endswith(f".{token_rows.ENDING}")}
    method = found.method or "TRAINABLE_TOKENS"
    return _Written(method, {**found.config, **config}, {**found.tensors, **rows}, used, found.adapted)


def _prompt_of(section: Mapping[str, Any], ours: Ours, modules: Modules) -> _Written:
    key = f"layers.0.softprompt_{section['name']}.weight"
    prompt = ours.tensors.get(key)
    if prompt is None:
        raise CheckpointError(f"the checkpoint lacks {key}; take one that was saved whole")
    config = {
        "num_virtual_tokens": prompt.shape[0],
        "token_dim": prompt.shape[1],
        "num_transformer_submodules": 1,
        "num_attention_heads": modules.heads,
        "num_layers": modules.layers,
        "prompt_tuning_init": "RANDOM",
    }
    tensors = {PROMPT: prompt.times(1.0 / modules.prompt_scale)}
    return _Written("PROMPT_TUNING", config, tensors, frozenset({key}))


def _with_rest(written: _Written, ours: Ours, modules: Modules, base: Base) -> Theirs:
    """Add the tensors of the base that were trained whole, and the fields that every file has."""
    method = written.method
    trained = {key: values for key, values in ours.tensors.items() if key not in written.used}
    if not method:
        norms = write_norms(trained, modules, base) if trained else None
        if norms is None:
            raise ConfigError(
                f"the checkpoint holds {first_of(sorted(trained), _NAMED) or 'no tensor'} and no method that PEFT has "
                "a form for; merge it into its base (scaling checkpoint merge) and export the model"
            )
        method, whole = "LN_TUNING", norms
    else:
        whole = write_whole(trained, written.adapted, modules, base, has_bias=method == "LORA")
        if method == "TRAINABLE_TOKENS" and whole.tensors:
            raise ConfigError(
                f"{first_of(sorted(trained), _NAMED)} were trained beside rows of tokens alone, which PEFT does not "
                "have; merge the adapter (scaling checkpoint merge) and export the model"
            )
    tensors, prefix = {**written.tensors, **whole.tensors}, _prefix(method)
    named = {(key if key == PROMPT else f"{prefix}{key}"): one for key, one in tensors.items()}
    said = {"peft_type": method, "task_type": TASK, "inference_mode": True, **written.config, **whole.config}
    return Theirs(said, dict(sorted(named.items())))


def _prefix(method: str) -> str:
    return PREFIX_BESIDE_PROMPT if method == "PROMPT_TUNING" else PREFIX
