"""An adapter's own rows of the embedding and of the head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from scaling.core import CheckpointError, ConfigError
from scaling.transformer.hf.peft import stored as kinds
from scaling.transformer.hf.peft.base_tensors import Base
from scaling.transformer.hf.peft.matching import is_named
from scaling.transformer.hf.peft.modules import Module, Modules
from scaling.transformer.hf.peft.stored import AdapterTensors
from scaling.transformer.hf.peft.values import Values

ENDING: Final = "token_rows.weight"

Rows = dict[str, Values]


def ids_by_module(settings: Mapping[str, Any], modules: Modules, *, source: str) -> dict[str, list[int]]:
    """Return the tokens of each module with rows of its own, by the module's name; a plain list is the embedding's."""
    tables = [module for module in modules if module.role in ("embedding", "head")]
    given = settings.get("trainable_token_indices", settings.get("token_indices"))
    if not given:
        return {}
    if isinstance(given, list):
        targets = settings["target_modules"] if "token_indices" in settings else None
        named = [one for one in tables if targets and any(is_named(targets, name) for name in one.names)]
        return {module.name: given for module in named or tables[:1]}
    found = {}
    for name, ids in given.items():
        module = next((one for one in tables if any(own.endswith(name) for own in one.names)), None)
        if module is None:
            raise ConfigError(
                f"{source}: trainable_token_indices name {name}, but only {' and '.join(one.name for one in tables)} "
                "have rows of tokens in this base; remove it"
            )
        found[module.name] = ids
    return found


def read_rows(
    settings: Mapping[str, Any], adapter: AdapterTensors, modules: Modules, base: Base
) -> tuple[list[int], Rows]:
    """Return the tokens and our tensors; rows of an untied head that the adapter does not change are the base's.

    Raises:
        ConfigError: The configuration asks for something that is not built.
        CheckpointError: The tensors are not those of the configuration.
    """
    by_module = ids_by_module(settings, modules, source=adapter.source)
    if not by_module:
        return [], {}
    ids = next(iter(by_module.values()))
    embedding, head = modules.by_role("embedding"), modules.by_role("head")
    assert embedding is not None
    if any(other != ids for other in by_module.values()):
        raise ConfigError(
            f"{adapter.source}: trainable_token_indices are {' and '.join(map(str, by_module.values()))} for embedding "
            "and head; here both have the same tokens: train one list for both"
        )
    if len(set(ids)) < len(ids) or max(ids) >= embedding.inputs:
        raise ConfigError(
            f"{adapter.source}: trainable_token_indices are {ids}; they have to be different tokens below the base's "
            f"vocabulary of {embedding.inputs}. Where tokens were added to the model, import the larger model as "
            "the base"
        )
    kind = kinds.ROWS if "token_indices" in settings else kinds.ROWS_OF_LORA
    shape = (len(ids), embedding.outputs)
    found: Rows = {}
    for module in (embedding, head):
        if module is None:
            continue
        key = f"{module.parts[0].name}.{ENDING}"
        if module is head and modules.tied:
            copy = adapter.take(module, kind, shape)
            if copy is not None and not torch.equal(copy.load(), next(iter(found.values())).load()):
                raise CheckpointError(
                    f"{adapter.source}: the rows of {module.name} are not those of {embedding.name}, but head and "
                    "embedding of this base are one; the adapter is for another base"
                )
        elif module.name in by_module:
            found[key] = adapter.require(module, kind, shape)
        else:
            found[key] = _rows_of_base(module, ids, base)
    return ids, found


def write_rows(
    ids: Sequence[int], tensors: Mapping[str, Values], modules: Modules, base: Base, *, alone: bool
) -> tuple[dict[str, Any], dict[str, Values]]:
    """Return the fields of adapter_config.json and the tensors; rows equal to the base's are left out.

    `alone`: the rows are a method of their own.
    """
    written: Rows = {}
    unchanged: set[str] = set()
    held = [key for key in tensors if key.endswith(f".{ENDING}")]
    kind = kinds.ROWS if alone else kinds.ROWS_OF_LORA
    for module in (modules.by_role("embedding"), modules.by_role("head")):
        values = None if module is None else tensors.get(f"{module.parts[0].name}.{ENDING}")
        if module is not None and values is not None:
            written[module.name] = values
            if len(held) > 1 and _are_of_base(values, module, ids, base):
                unchanged.add(module.name)
    if len(unchanged) < len(written):
        written = {name: values for name, values in written.items() if name not in unchanged}
    names = [name.rpartition(".")[2] for name in written]
    named = {f"{name}.{kind}": values for name, values in written.items()}
    if alone:
        head = modules.by_role("head")
        if modules.tied and head is not None:  # peft stores the same rows for the tied head too
            named |= {f"{head.name}.{kind}": values for values in written.values()}
        return {"token_indices": list(ids), "target_modules": names}, named
    embedding = modules.by_role("embedding")
    is_usual = embedding is not None and list(written) == [embedding.name]
    return {"trainable_token_indices": list(ids) if is_usual else {name: list(ids) for name in names}}, named


def _are_of_base(values: Values, module: Module, ids: Sequence[int], base: Base) -> bool:
    """Return whether rows equal those of the base, which has no rows of new tokens."""
    weight = module.tensor(kinds.WEIGHT)
    assert weight is not None
    is_new = max(ids) >= base(weight.sources[0].key).shape[0]
    return not is_new and torch.equal(values.load(), _rows_of_base(module, ids, base).load())


def _rows_of_base(module: Module, ids: Sequence[int], base: Base) -> Values:
    weight = module.tensor(kinds.WEIGHT)
    assert weight is not None
    whole = base(weight.sources[0].key)
    shape = (len(ids), *whole.shape[1:])
    return Values(torch.float32, shape, lambda: whole.load()[list(ids)].to(torch.float32))
