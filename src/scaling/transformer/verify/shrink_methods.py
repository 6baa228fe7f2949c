"""Make methods of fine-tuning fit a model that has been made small, without changing what they add where. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.methods import Module, modules_of
from scaling.transformer.config.model_plan import base_plan_of


def small_methods(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes of an architecture's values that let its methods fit its sizes, which have been made small.

    Ranks and prompts become shorter, adapters narrower; tokens become others of the small vocabulary. Patterns that
    name layers which are gone are dropped, and where none is left, all modules of the model are meant.
    """
    without = {**values, **dict.fromkeys(_SECTIONS), "finetunable_token_ids": []}
    base = TransformerArchitectureConfig.from_dict(without, quiet=True)
    modules = list(modules_of(base_plan_of(base)))
    changes: dict[str, Any] = {}
    if (lora := values["lora_config"]) is not None:
        chosen = _kept(lora["parallel_modules"], modules)
        adapted = [module for module in modules if module.is_one_of(chosen)]
        most = min(min(module.shape) for module in adapted)
        ranks = {pattern: min(rank, most) for pattern, rank in lora["rank_pattern"].items()}
        changes["lora_config"] = {
            **lora,
            "parallel_modules": chosen,
            "rank": min(lora["rank"], most),
            "rank_pattern": _found(ranks, adapted),
            "alpha_pattern": _found(lora["alpha_pattern"], adapted),
        }
    linears = [module for module in modules if module.short not in ("embedding", "head")]
    if (ia3 := values["ia3_config"]) is not None:
        chosen = _kept(ia3["parallel_modules"], linears)
        scaled = [module for module in linears if module.is_one_of(chosen)]
        inputs = [word for word in ia3["input_modules"] if any(module.is_one_of([word]) for module in scaled)]
        changes["ia3_config"] = {**ia3, "parallel_modules": chosen, "input_modules": inputs}
    if (bitfit := values["bitfit_bias_config"]) is not None and bitfit["add_to"]:
        changes["bitfit_bias_config"] = {**bitfit, "add_to": _kept(bitfit["add_to"], linears)}
    if (adapter := values["adapter_config"]) is not None:
        changes["adapter_config"] = {**adapter, **_factors(adapter, base.hidden_size)}
    if (prompt := values["softprompt_config"]) is not None:
        changes["softprompt_config"] = {
            **prompt,
            "n_tokens": min(prompt["n_tokens"], max(1, base.sequence_length // 4)),
        }
    tokens = values["finetunable_token_ids"]
    changes["finetunable_token_ids"] = list(dict.fromkeys(token % base.vocab_size for token in tokens))
    return changes


_SECTIONS = ("lora_config", "ia3_config", "bitfit_bias_config", "adapter_config", "softprompt_config")


def _kept(words: Sequence[str], modules: Iterable[Module]) -> list[str]:
    modules = list(modules)
    kept = [word for word in words if any(module.is_one_of([word]) for module in modules)]
    return kept or list(dict.fromkeys(module.short for module in modules if module.short not in ("embedding", "head")))


def _found(patterns: Mapping[str, Any], modules: Iterable[Module]) -> dict[str, Any]:
    names = [module.name for module in modules]
    return {pattern: value for pattern, value in patterns.items() if any(re.search(pattern, name) for name in names)}


def _factors(adapter: Mapping[str, Any], hidden: int) -> dict[str, float | None]:
    """Return factors that give whole widths of a small hidden size."""
    names = ("attention_downsampling_factor", "mlp_downsampling_factor")
    return {name: None if adapter[name] is None else max(1, round(adapter[name] * hidden)) / hidden for name in names}
