"""LoRA: the matrices of their modules, cut into those of ours and joined again."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from scaling.core import CheckpointError, ConfigError
from scaling.transformer.hf.peft import stored as kinds
from scaling.transformer.hf.peft.fields import METHODS
from scaling.transformer.hf.peft.matching import by_ending, endings, is_target, value_of
from scaling.transformer.hf.peft.modules import Module, Modules, Part
from scaling.transformer.hf.peft.naming import chosen, patterns
from scaling.transformer.hf.peft.stored import AdapterTensors
from scaling.transformer.hf.peft.values import Values, joined, same, stacked

ROLES: Final = ("linear", "embedding", "head")
"""Roles of modules that can be adapted."""


@final
@dataclass(frozen=True)
class Lora:
    """The adapter of one of our modules."""

    a: Values
    b: Values
    alpha: float
    bias: Values | None = None
    magnitude: Values | None = None

    @property
    def rank(self) -> int:
        """Return the number of rows of A."""
        return self.a.shape[0]

    def scale(self, *, rslora: bool) -> float:
        """Return the factor of the product."""
        return self.alpha / (math.sqrt(self.rank) if rslora else self.rank)

    def tensors(self, module: str, name: str) -> Iterator[tuple[str, Values]]:
        """Yield the tensors of a checkpoint."""
        for kind, values in (("a", self.a), ("b", self.b), ("bias", self.bias), ("magnitude", self.magnitude)):
            if values is not None:
                yield f"{module}.lora_{name}.{kind}", values


def read_lora(settings: Mapping[str, Any], adapter: AdapterTensors, modules: Modules) -> dict[str, Lora]:
    """Return the adapters of our modules, by their names.

    Raises:
        ConfigError: The configuration asks for something that is not built.
        CheckpointError: The tensors are not those of the configuration.
    """
    if settings["use_dora"] and settings["lora_bias"]:
        raise ConfigError(
            f"{adapter.source}: use_dora and lora_bias together are not built; merge the adapter into its model with "
            "PEFT, and import the model"
        )
    found: dict[str, Lora] = {}
    for module in modules:
        meant = any(is_target(settings, name, is_linear=module.role == "linear") for name in module.names)
        given = adapter.holds(module, kinds.A, kinds.EMBEDDING_A)
        if settings["target_modules"] is None:
            meant = given
        if given and not meant:
            raise CheckpointError(
                f"{adapter.source} adapts {module.name}, which target_modules in adapter_config.json do not mean; the "
                "two are not of one adapter"
            )
        if meant and module.role in ROLES:
            found |= _read(module, settings, adapter, modules)
        elif meant:
            raise ConfigError(
                f"{adapter.source}: target_modules in adapter_config.json mean {module.name}, but only linear layers, "
                "the token embedding and the head can have LoRA here; leave it out"
            )
    if not found:
        raise ConfigError(
            f"{adapter.source}: target_modules in adapter_config.json mean no module of this {modules.model_type} "
            "model; name the base that the adapter was trained on"
        )
    return found


def _read(
    module: Module, settings: Mapping[str, Any], adapter: AdapterTensors, modules: Modules
) -> Iterator[tuple[str, Lora]]:
    name = module.name
    rank, scale = settings["r"], settings["lora_alpha"]
    for known in module.names:
        rank = value_of(settings["rank_pattern"], known, rank)
        scale = value_of(settings["alpha_pattern"], known, scale)
    if rank > (most := min(module.inputs, module.outputs)):
        raise ConfigError(
            f"{adapter.source}: {name} has rank {rank}, more than its matrix of {module.outputs} x {module.inputs} can "
            f"have ({most}); an adapter of full rank is better merged into its model"
        )
    is_table = module.role == "embedding"
    if is_table and settings["use_dora"]:
        raise ConfigError(
            f"{adapter.source}: use_dora with {name}, an embedding, is not built; merge the adapter into its model "
            "with PEFT, and import the model"
        )
    if name in _tied_targets(settings, modules):
        raise ConfigError(
            f"{adapter.source}: ensure_weight_tying gives embedding and head one adapter, which is not built; merge it "
            "into its model with PEFT, and import the model"
        )
    a_kind, b_kind = (kinds.EMBEDDING_A, kinds.EMBEDDING_B) if is_table else (kinds.A, kinds.B)
    a = adapter.require(module, a_kind, (rank, module.inputs))
    b = adapter.require(module, b_kind, (module.outputs, rank))
    row = (module.outputs,)
    bias = adapter.require(module, kinds.B_BIAS, row) if settings["lora_bias"] else None
    magnitude = adapter.require(module, kinds.MAGNITUDE, row) if settings["use_dora"] else None
    for part in module.parts:
        yield (
            part.name,
            Lora(a, _cut(b, part), float(scale), *(_cut(one, part) if one else None for one in (bias, magnitude))),
        )


def _tied_targets(settings: Mapping[str, Any], modules: Modules) -> list[str]:
    if not (modules.tied and settings["ensure_weight_tying"]):
        return []
    return [module.name for module in modules if module.role in ("embedding", "head")]


def _cut(values: Values, part: Part) -> Values:
    return values.rows(part.outputs, part.rows)


def section_of(settings: Mapping[str, Any], found: Mapping[str, Lora], modules: Modules) -> dict[str, Any]:
    """Return the section `lora_config` of the adapters that were read."""
    ranks = {name: one.rank for name, one in found.items()}
    alphas = {name: one.alpha for name, one in found.items()}
    rank, alpha = settings["r"], float(settings["lora_alpha"])
    return {
        "rank": rank,
        "alpha": alpha,
        "dropout": float(settings["lora_dropout"]),
        "parallel_modules": chosen(found, modules),
        "rank_pattern": patterns(ranks, rank, modules),
        "alpha_pattern": patterns(alphas, alpha, modules),
        "use_rslora": settings["use_rslora"],
        "use_dora": settings["use_dora"],
        "bias": settings["lora_bias"],
    }


def lora_in(section: Mapping[str, Any], tensors: Mapping[str, Values]) -> dict[str, Lora]:
    """Return the adapters in one of our checkpoints, by the names of modules."""
    ending, found = f".lora_{section['name']}.a", {}
    for key, a in tensors.items():
        if not key.endswith(ending):
            continue
        module, at = key.removesuffix(ending), key[:-1]
        if f"{at}b" not in tensors:
            raise CheckpointError(f"the checkpoint holds {key} without {at}b; take one that was saved whole")
        matching = [value for pattern, value in section["alpha_pattern"].items() if re.search(pattern, module)]
        alpha = matching[-1] if matching else section["alpha"]
        found[module] = Lora(a, tensors[f"{at}b"], alpha, tensors.get(f"{at}bias"), tensors.get(f"{at}magnitude"))
    return found


def write_lora(
    section: Mapping[str, Any], found: Mapping[str, Lora], modules: Modules
) -> tuple[dict[str, Any], dict[str, Values]]:
    """Return the fields of adapter_config.json and the tensors by their names within the model.

    Raises:
        ConfigError: An adapter has no form in PEFT.
    """
    rslora = section["use_rslora"]
    written = {module.name: _written(module, found, rslora=rslora) for module in modules.of(found)}
    tensors: dict[str, Values] = {}
    for module in modules.of(found):
        is_table, one = module.role == "embedding", written[module.name]
        if is_table and one.bias is not None:
            raise ConfigError(f"LoRA on {module.name} has a bias, which PEFT does not have on embeddings; merge it")
        a, b = (kinds.EMBEDDING_A, kinds.EMBEDDING_B) if is_table else (kinds.A, kinds.B)
        named = ((a, one.a), (b, one.b), (kinds.B_BIAS, one.bias), (kinds.MAGNITUDE, one.magnitude))
        tensors |= {f"{module.name}.{kind}": values for kind, values in named if values is not None}
    ranks, alphas = ({name: getattr(one, of) for name, one in written.items()} for of in ("rank", "alpha"))
    known = [module.name for module in modules]
    config = {
        "r": section["rank"],
        "lora_alpha": plain(section["alpha"]),
        "lora_dropout": section["dropout"],
        "target_modules": endings(list(written), known),
        "rank_pattern": by_ending(ranks, section["rank"]),
        "alpha_pattern": {name: plain(alpha) for name, alpha in by_ending(alphas, float(section["alpha"])).items()},
        "use_rslora": rslora,
        "use_dora": section["use_dora"],
        "lora_bias": section["bias"],
        "fan_in_fan_out": any(module.transposed for module in modules.of(found)),
        "init_lora_weights": True,
        **{name: METHODS["LORA"][name].default for name in ("bias", "modules_to_save", "trainable_token_indices")},
    }
    return config, tensors


def _written(module: Module, found: Mapping[str, Lora], *, rslora: bool) -> Lora:
    """Return the one adapter of a module that is equivalent to the adapters of its parts."""
    parts = [part for part in module.parts if part.name in found]
    own = [found[part.name] for part in parts]
    if len(module.parts) == 1:
        return own[0]
    first = own[0]
    scale = first.scale(rslora=rslora)
    for part, one in zip(parts, own, strict=True):
        if not math.isclose(one.scale(rslora=rslora), scale, rel_tol=1e-9):
            raise ConfigError(
                f"{module.name} is {' and '.join(part.name for part in parts)} in one matrix, whose adapter has one "
                f"scale, but alpha / rank is {scale:g} for {parts[0].name} and {one.scale(rslora=rslora):g} for "
                f"{part.name}; train them with one, or merge the adapter (scaling checkpoint merge) and export the "
                "model"
            )
    if any(one.magnitude is not None for one in own) and len(parts) < len(module.parts):
        rest = [part.name for part in module.parts if part not in parts]
        raise ConfigError(
            f"{module.name} has DoRA on {', '.join(part.name for part in parts)}, but not on {', '.join(rest)}, which "
            "is in the same matrix; merge the adapter (scaling checkpoint merge) and export the model"
        )
    rows = [part.rows for part in parts]
    vectors = [_vector(module, parts, [getattr(one, kind) for one in own]) for kind in ("bias", "magnitude")]
    if same([one.a for one in own]):
        b = joined((module.outputs, first.rank), list(zip(rows, [one.b for one in own], strict=True)), fill=0.0)
        return Lora(first.a, b, first.alpha, *vectors)
    ranks = [one.rank for one in own]
    total = sum(ranks)
    b = joined(
        (module.outputs, total),
        list(zip(rows, [one.b for one in own], strict=True)),
        first_column=[sum(ranks[:index]) for index in range(len(ranks))],
        fill=0.0,
    )
    alpha = scale * (math.sqrt(total) if rslora else total)
    return Lora(stacked([one.a for one in own]), b, alpha, *vectors)


def _vector(module: Module, parts: Sequence[Part], values: Sequence[Values | None]) -> Values | None:
    given = [(part.rows, one) for part, one in zip(parts, values, strict=True) if one is not None]
    return joined((module.outputs,), given, fill=0.0) if given else None


def plain(value: float) -> float | int:
    """Return a number as an int if it is whole, as PEFT writes it."""
    return int(value) if float(value).is_integer() else value
