"""Tensors of the base in an adapter: trained whole, or copied unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch

from scaling.core import CheckpointError, ConfigError, first_of
from scaling.transformer.hf.peft import stored as kinds
from scaling.transformer.hf.peft.matching import raw_endings
from scaling.transformer.hf.peft.modules import Module, Modules
from scaling.transformer.hf.peft.stored import AdapterTensors
from scaling.transformer.hf.peft.values import Values, joined
from scaling.transformer.hf.tensors import TensorMap

_NAMED = 5

Base = Callable[[str], Values]
"""Function that returns a tensor of the base by its name; `CheckpointError` where the base is missing."""


def read_whole(adapter: AdapterTensors, modules: Modules, settings: Mapping[str, Any], base: Base) -> dict[str, Values]:
    """Return the adapter's own versions of tensors of the base, by our names.

    Raises:
        ConfigError: A tied tensor would apply in only one of its two places.
        CheckpointError: A copy that was saved beside an adapter is not the base's.
    """
    found: dict[str, Values] = {}
    for module in modules:
        for tensor in module.tensors:
            kind = tensor.name.rpartition(".")[2]
            _require_copy(adapter, module, tensor, settings, base)
            for repeated in kinds.REPEATED:
                adapter.take(module, f"{repeated}{kind}", tensor.shape)
            own = [adapter.take(module, f"{of}{kind}", tensor.shape) for of in ("", kinds.NORM)]
            if kind == kinds.BIAS:
                own.append(adapter.take(module, f"{kinds.BASE}{kind}", tensor.shape))
            given = [values for values in own if values is not None]
            if not given:
                continue
            if modules.tied and module.role == "embedding" and not settings.get("ensure_weight_tying"):
                raise ConfigError(
                    f"{adapter.source} holds {module.name} trained whole, without ensure_weight_tying: PEFT then keeps "
                    "the head as it was, but embedding and head of this base are one. Set ensure_weight_tying to true "
                    "in adapter_config.json where they were trained together"
                )
            found |= ours_of(tensor, given[0])
        if module.role == "head" and modules.tied:
            _require_same_head(adapter, module, modules, found, base)
    return found


def ours_of(tensor: TensorMap, values: Values) -> dict[str, Values]:
    """Return the tensors of ours that make up one of theirs."""
    whole = values.turned() if tensor.transposed else values
    return {source.key: whole.rows(source.shape[0], source.rows) for source in tensor.sources}


def theirs_of(tensor: TensorMap, ours: Mapping[str, Values], base: Base) -> Values:
    """Return a tensor of theirs; parts that are not among `ours` come from the base."""
    parts = [(source.rows, ours[source.key] if source.key in ours else base(source.key)) for source in tensor.sources]
    shape = tensor.shape[::-1] if tensor.transposed else tensor.shape
    whole = joined(shape, parts, fill=0.0)
    return whole.turned() if tensor.transposed else whole


def _require_copy(
    adapter: AdapterTensors, module: Module, tensor: TensorMap, settings: Mapping[str, Any], base: Base
) -> None:
    """Refuse a copy of a matrix, saved beside its adapter, that differs from the base."""
    if tensor.name.endswith(f".{kinds.BIAS}") and settings.get("bias", "none") != "none":
        return
    copy = adapter.take(module, f"{kinds.BASE}{tensor.name.rpartition('.')[2]}", tensor.shape)
    if copy is not None:
        _require_equal(adapter, module.name, copy, theirs_of(tensor, {}, base))


def _require_same_head(
    adapter: AdapterTensors,
    module: Module,
    modules: Modules,
    found: Mapping[str, Values],
    base: Base,
) -> None:
    """Refuse a separate head where the base's head is tied to its embedding."""
    embedding = modules.by_role("embedding")
    assert embedding is not None
    tensor = embedding.tensor(kinds.WEIGHT)
    assert tensor is not None
    copy = adapter.take(module, f"{kinds.BASE}{kinds.WEIGHT}", tensor.shape)
    if copy is not None:
        _require_equal(adapter, module.name, copy, theirs_of(tensor, {}, base))
    own = adapter.take(module, kinds.WEIGHT, tensor.shape)
    if own is None:
        return
    trained = found.get(tensor.sources[0].key)
    if trained is None or not torch.equal(own.load(), trained.load()):
        raise ConfigError(
            f"{adapter.source} holds {module.name} trained whole, but the head of this base is its embedding; untie "
            "them in the model first (tie_word_embeddings), and import that as the base"
        )


def _require_equal(adapter: AdapterTensors, name: str, copy: Values, own: Values) -> None:
    if not torch.equal(copy.load(), own.load().to(copy.dtype)):
        raise CheckpointError(
            f"{adapter.source} holds a copy of the base's {name} that differs from it; the adapter is for another "
            "base, or the embedding was changed before (new tokens): import the changed model as the base"
        )


@final
@dataclass(frozen=True)
class Whole:
    """How base tensors are written: the fields that announce them, and the tensors by their names in the model."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Values]


def write_whole(
    trained: Mapping[str, Values], adapted: Sequence[str], modules: Modules, base: Base, *, has_bias: bool
) -> Whole:
    """Return how trained tensors of the base are written. `has_bias`: the method has a field for trained biases.

    Raises:
        ConfigError: A module is adapted and trained at once.
    """
    if not trained:
        return Whole({}, {})
    own = {module.name for module in modules.of(adapted)}
    touched = {
        (module.name, tensor.name.rpartition(".")[2]): tensor
        for module in modules
        for tensor in module.tensors
        if any(source.key in trained for source in tensor.sources)
    }
    covered = {source.key for tensor in touched.values() for source in tensor.sources}
    if rest := [key for key in trained if key not in covered]:
        raise ConfigError(
            f"the checkpoint holds {first_of(rest, _NAMED)}, which have no form in PEFT; merge them (scaling "
            "checkpoint merge) and export the model"
        )
    whole = [module for module in modules if (module.name, kinds.WEIGHT) in touched]
    if both := [module.name for module in whole if module.name in own]:
        raise ConfigError(
            f"{first_of(both, _NAMED)} {'is' if len(both) == 1 else 'are'} adapted and trained whole, which PEFT does "
            "not have; merge the adapter (scaling checkpoint merge) and export the model"
        )
    biased = [module for module in modules if (module.name, kinds.BIAS) in touched and module not in whole]
    if not has_bias:
        if both := [module.name for module in biased if module.name in own]:
            raise ConfigError(
                f"the bias of {first_of(both, _NAMED)} is trained beside another method than LoRA, which PEFT does not "
                "have; merge the adapter (scaling checkpoint merge) and export the model"
            )
        whole, biased = [*whole, *biased], []
    config: dict[str, Any] = {}
    tensors: dict[str, Values] = {}
    for module in whole:
        for tensor in module.tensors:
            tensors[f"{module.name}.{tensor.name.rpartition('.')[2]}"] = theirs_of(tensor, trained, base)
    if whole:
        names = raw_endings([module.name for module in whole], [module.name for module in modules])
        config["modules_to_save"] = names
        tied = [module.name for module in whole if modules.tied and module.role == "embedding"]
        if tied and (head := modules.by_role("head")) is not None:
            config["ensure_weight_tying"] = True
            tensors[f"{head.name}.{kinds.WEIGHT}"] = tensors[f"{tied[0]}.{kinds.WEIGHT}"]
    if biased:
        only = all(module.name in own for module in biased)
        config["bias"] = "lora_only" if only else "all"
        for module in modules:
            bias = module.tensor(kinds.BIAS)
            if bias is not None and module not in whole and (module.name in own or not only):
                at = f"{module.name}.{kinds.BASE if module.name in own else ''}{kinds.BIAS}"
                tensors[at] = theirs_of(bias, trained, base)
    return Whole(config, tensors)


def write_norms(trained: Mapping[str, Values], modules: Modules, base: Base) -> Whole | None:
    """Return the form of LN tuning, or None where something other than norms was trained."""
    keys = set(trained)
    norms = [module for module in modules if module.role == "norm" and _keys(module.tensors) & keys]
    if keys - {key for module in norms for key in _keys(module.tensors)}:
        return None
    tensors = {
        f"{module.name}.{kinds.NORM}{tensor.name.rpartition('.')[2]}": theirs_of(tensor, trained, base)
        for module in norms
        for tensor in module.tensors
    }
    return Whole({"target_modules": [module.name for module in norms]}, tensors)


def _keys(tensors: Iterable[TensorMap]) -> set[str]:
    return {source.key for tensor in tensors for source in tensor.sources}
