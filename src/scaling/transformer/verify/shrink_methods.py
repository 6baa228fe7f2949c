"""Make methods of fine-tuning fit a shrunk model; the kinds of modules that they change are kept. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scaling.transformer.config.architecture import ArchitectureConfig
from scaling.transformer.config.finetuning import MethodsConfig
from scaling.transformer.config.methods import Module, modules_of
from scaling.transformer.config.model_plan import base_plan_of


def without_methods() -> dict[str, Any]:
    """Return settings of an architecture without methods."""
    return MethodsConfig().as_dict()


def shrunk_methods(large: ArchitectureConfig, small: ArchitectureConfig) -> dict[str, Any]:
    """Return the settings of the methods of `large` that fit `small`, which has none."""
    if not large.has_methods:
        return {}
    before, after = list(modules_of(base_plan_of(large))), list(modules_of(base_plan_of(small)))
    values: dict[str, Any] = MethodsConfig(
        **{name: getattr(large, name) for name in MethodsConfig.model_fields}
    ).as_dict()
    if (lora := values["lora_config"]) is not None:
        lora["parallel_modules"] = _words(lora["parallel_modules"], before, after)
        chosen = [module for module in after if module.is_one_of(lora["parallel_modules"])]
        most = min(size for module in chosen for size in module.shape if size)
        lora["rank"] = min(lora["rank"], most)
        lora["rank_pattern"] = {
            pattern: min(rank, most) for pattern, rank in _found(lora["rank_pattern"], chosen).items()
        }
        lora["alpha_pattern"] = _found(lora["alpha_pattern"], chosen)
    if (ia3 := values["ia3_config"]) is not None:
        for name in ("parallel_modules", "input_modules"):
            ia3[name] = _words(ia3[name], before, after)
    if (bitfit := values["bitfit_bias_config"]) is not None:
        bitfit["add_to"] = _words(bitfit["add_to"], before, after)
    if (adapter := values["adapter_config"]) is not None:
        for name in ("attention_downsampling_factor", "mlp_downsampling_factor"):
            if (factor := adapter[name]) is not None:
                adapter[name] = max(1, round(factor * small.hidden_size)) / small.hidden_size
    if (prompt := values["softprompt_config"]) is not None:
        prompt["n_tokens"] = min(prompt["n_tokens"], max(1, small.sequence_length // 4))
    tokens, vocabulary = values["finetunable_token_ids"], small.vocab_size
    if any(token >= vocabulary for token in tokens):
        count = min(len(tokens), vocabulary)
        values["finetunable_token_ids"] = [number * vocabulary // count for number in range(count)]
    return values


def _words(words: Sequence[str], before: Iterable[Module], after: Sequence[Module]) -> list[str]:
    """Return the words that select modules, with short names in place of patterns whose layers are gone."""
    found: dict[str, None] = {}
    for word in words:
        if any(module.is_one_of([word]) for module in after):
            found[word] = None
        else:
            found |= dict.fromkeys(module.short for module in before if module.is_one_of([word]))
    return list(found)


def _found(patterns: Mapping[str, Any], modules: Iterable[Module]) -> dict[str, Any]:
    """Return the patterns that match the name of a module."""
    names = [module.name for module in modules]
    return {pattern: value for pattern, value in patterns.items() if any(re.search(pattern, name) for name in names)}
