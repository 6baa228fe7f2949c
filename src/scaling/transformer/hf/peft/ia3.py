"""IA3: factors of the outputs of modules, or of their inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaling.core import CheckpointError, ConfigError
from scaling.transformer.hf.peft import stored as kinds
from scaling.transformer.hf.peft.matching import endings, is_named, is_target
from scaling.transformer.hf.peft.modules import Module, Modules
from scaling.transformer.hf.peft.naming import chosen, is_chosen
from scaling.transformer.hf.peft.stored import AdapterTensors
from scaling.transformer.hf.peft.values import Values, joined, same

Scales = Mapping[str, tuple[Values, bool]]
"""By our modules: their factors, and whether these are factors of the input."""


def read_ia3(settings: Mapping[str, Any], adapter: AdapterTensors, modules: Modules) -> Scales:
    """Return the factors of our modules.

    Raises:
        ConfigError: The configuration asks for something that is not built.
        CheckpointError: The tensors are not those of the configuration.
    """
    found: dict[str, tuple[Values, bool]] = {}
    for module in modules:
        meant = any(is_target(settings, name, is_linear=module.role == "linear") for name in module.names)
        given = adapter.holds(module, kinds.IA3)
        if settings["target_modules"] is None:
            meant = given
        if given and not meant:
            raise CheckpointError(
                f"{adapter.source} scales {module.name}, which target_modules in adapter_config.json do not mean; the "
                "two are not of one adapter"
            )
        if not meant:
            continue
        if module.role not in ("linear", "head"):
            raise ConfigError(
                f"{adapter.source}: target_modules in adapter_config.json mean {module.name}, but only linear layers "
                "can be scaled; leave it out"
            )
        of_input = any(is_named(settings["feedforward_modules"] or [], name) for name in module.names)
        shape = (1, module.inputs) if of_input else (module.outputs, 1)
        values = adapter.require(module, kinds.IA3, shape).shaped(max(shape))
        for part in module.parts:
            found[part.name] = (values if of_input else values.rows(part.outputs, part.rows), of_input)
    if not found:
        raise ConfigError(
            f"{adapter.source}: target_modules in adapter_config.json mean no module of this {modules.model_type} "
            "model; name the base that the adapter was trained on"
        )
    return found


def section_of(found: Scales, modules: Modules) -> dict[str, Any]:
    """Return the section `ia3_config` of the factors that were read."""
    of_inputs = [name for name, (_, of_input) in found.items() if of_input]
    return {"parallel_modules": chosen(found, modules), "input_modules": chosen(of_inputs, modules)}


def ia3_in(section: Mapping[str, Any], tensors: Mapping[str, Values], modules: Modules) -> Scales:
    """Return the factors in one of our checkpoints, by the names of modules."""
    ending = f".ia3_{section['name']}.scale"
    names = {key.removesuffix(ending): values for key, values in tensors.items() if key.endswith(ending)}
    return {name: (values, is_chosen(name, section["input_modules"], modules)) for name, values in names.items()}


def write_ia3(found: Scales, modules: Modules) -> tuple[dict[str, Any], dict[str, Values]]:
    """Return the fields of adapter_config.json and the tensors by their names within the model.

    Raises:
        ConfigError: The factors have no form in PEFT.
    """
    tensors, of_inputs = {}, []
    for module in modules.of(found):
        tensors[f"{module.name}.{kinds.IA3}"] = _written(module, found)
        if any(found[part.name][1] for part in module.parts if part.name in found):
            of_inputs.append(module.name)
    names, known = [module.name for module in modules.of(found)], [module.name for module in modules]
    config = {
        "target_modules": endings(names, known),
        "feedforward_modules": endings(of_inputs, known),
        "fan_in_fan_out": any(module.transposed for module in modules.of(found)),
    }
    return config, tensors


def _written(module: Module, found: Scales) -> Values:
    parts = [part for part in module.parts if part.name in found]
    own = [found[part.name] for part in parts]
    if not any(of_input for _, of_input in own):
        rows = [(part.rows, values) for part, (values, _) in zip(parts, own, strict=True)]
        return joined((module.outputs,), rows, fill=1.0).shaped(module.outputs, 1)
    if len(own) < len(module.parts) or not all(of_input for _, of_input in own) or not same([one for one, _ in own]):
        raise ConfigError(
            f"{module.name} is {', '.join(part.name for part in module.parts)} in one matrix with one input, which IA3 "
            "scales differently for each here; merge it (scaling checkpoint merge) and export the model"
        )
    return own[0][0].shaped(1, module.inputs)
