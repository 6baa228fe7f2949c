"""The fields of adapter_config.json: their accepted values, and the methods and variants that are built."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from scaling.core import Problem, nearest
from scaling.transformer.hf.fields import shown

TASK: Final = "CAUSAL_LM"
NOT_BUILT: Final = "this is not built, so the adapter cannot be read"


@dataclass(frozen=True)
class Known:
    """A field that is built."""

    default: Any
    accepts: Callable[[Any], bool]
    what: str
    """Description of the accepted values, for a message."""


@dataclass(frozen=True)
class Off:
    """A field that is accepted only while it is switched off."""

    why: str


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_alpha(value: Any) -> bool:
    return _is_number(value) and bool(value >= 0)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_pattern(value: Any) -> bool:
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _is_names(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(name, str) and name for name in value))


def _is_targets(value: Any) -> bool:
    return _is_names(value) or (isinstance(value, str) and _is_pattern(value))


def _is_patterns(value: Any) -> bool:
    return value is None or (_is_names(value) and all(map(_is_pattern, value))) or _is_targets(value)


def _is_layers(value: Any) -> bool:
    return value is None or type(value) is int or (isinstance(value, list) and all(type(n) is int for n in value))


def _is_table(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        return value is None or (
            isinstance(value, dict) and all(_is_pattern(key) and accepts(one) for key, one in value.items())
        )

    return check


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)


def _is_rows(value: Any) -> bool:
    return value is None or _is_ids(value) or (isinstance(value, dict) and all(map(_is_ids, value.values())))


_TARGETS: Final = Known(None, _is_targets, "a list of names, or one regular expression")
_NAMES: Final = Known(None, _is_names, "a list of names, or null")
_SWITCH: Final = Known(False, _is_bool, "true or false")
_COMMON: Final[Mapping[str, Known]] = {"modules_to_save": _NAMES}
_LAYERS: Final[Mapping[str, Known]] = {
    "target_modules": _TARGETS,
    "exclude_modules": _TARGETS,
    "layers_to_transform": Known(None, _is_layers, "numbers of layers, or null"),
    "layers_pattern": Known(None, _is_patterns, "names of lists of layers, or null"),
}

METHODS: Final[Mapping[str, Mapping[str, Known]]] = {
    "LORA": {
        **_COMMON,
        **_LAYERS,
        "r": Known(8, _is_count, "a whole number above 0"),
        "lora_alpha": Known(8, _is_alpha, "a number of at least 0"),
        "lora_dropout": Known(0.0, lambda value: _is_number(value) and 0 <= value < 1, "a number from 0 to below 1"),
        "use_rslora": _SWITCH,
        "use_dora": _SWITCH,
        "lora_bias": _SWITCH,
        "fan_in_fan_out": _SWITCH,
        "ensure_weight_tying": _SWITCH,
        "bias": Known("none", lambda value: value in ("none", "all", "lora_only"), "none, all or lora_only"),
        "rank_pattern": Known({}, _is_table(_is_count), "an object of ranks by names of modules"),
        "alpha_pattern": Known({}, _is_table(_is_alpha), "an object of numbers by names of modules"),
        "trainable_token_indices": Known(None, _is_rows, "a list of token ids, or an object of such lists"),
    },
    "IA3": {
        **_COMMON,
        "target_modules": _TARGETS,
        "exclude_modules": _TARGETS,
        "feedforward_modules": _TARGETS,
        "fan_in_fan_out": _SWITCH,
    },
    "PROMPT_TUNING": {
        **_COMMON,
        "num_virtual_tokens": Known(None, _is_count, "a whole number above 0"),
        "num_transformer_submodules": Known(1, lambda value: value in (1, None), "1, as in a language model"),
        "token_dim": Known(None, lambda value: value is None or _is_count(value), "a whole number above 0"),
    },
    "TRAINABLE_TOKENS": {
        "target_modules": _TARGETS,
        "token_indices": Known([], _is_ids, "a list of token ids"),
    },
    "LN_TUNING": {**_COMMON, "target_modules": _TARGETS, "exclude_modules": _TARGETS},
}
"""The methods that are built, each with its fields that change the computation."""

OFF: Final[Mapping[str, Off]] = {
    "alora_invocation_tokens": Off(f"the adapter acts behind these tokens only (aLoRA); {NOT_BUILT}"),
    "arrow_config": Off(f"tokens are routed between adapters (Arrow); {NOT_BUILT}"),
    "kasa_config": Off(f"the base's weights were changed (KaSA); {NOT_BUILT}"),
    "layer_replication": Off(f"layers of the base are repeated; {NOT_BUILT}"),
    "megatron_config": Off(f"the adapter was made for modules of Megatron-LM; {NOT_BUILT}"),
    "monteclora_config": Off(f"weights are drawn anew in each pass (MonteCLoRA); {NOT_BUILT}"),
    "target_parameters": Off(f"parameters that are no module's weight are adapted; {NOT_BUILT}"),
    "use_bdlora": Off(f"the matrices are block-diagonal (BD-LoRA); {NOT_BUILT}"),
    "use_qalora": Off(f"inputs are pooled in groups (QA-LoRA); {NOT_BUILT}"),
}

INERT: Final = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ephemeral_gpu_offload",
        "eva_config",
        "inference_mode",
        "init_ia3_weights",
        "init_lora_weights",
        "init_weights",
        "loftq_config",
        "lora_ga_config",
        "megatron_core",
        "num_attention_heads",
        "num_layers",
        "peft_type",
        "peft_version",
        "prompt_tuning_init",
        "prompt_tuning_init_text",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
        "tokenizer_kwargs",
        "tokenizer_name_or_path",
        "velora_config",
    }
)
"""Fields that say how an adapter was made or is loaded. `init_lora_weights` is checked separately."""

_HARMLESS_STARTS: Final = ("gaussian", "eva", "orthogonal")
_CHANGED_BASE: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")
_START: Final = "init_lora_weights"


def problems_of(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the reasons why an adapter_config.json is not of a method that is built, on a language model."""
    method = config.get("peft_type")
    known = METHODS.get(method) if isinstance(method, str) else None
    if known is None:
        yield _method_problem(method)
        return
    if config.get("task_type") not in (TASK, None):
        yield Problem(
            "task_type", f"is {shown(config['task_type'])}; only adapters of language models are read: {TASK}"
        )
    for name, value in config.items():
        if name in known:
            if not known[name].accepts(value) and value is not None:
                yield Problem(name, f"is {shown(value)}; it has to be {known[name].what}")
        elif name in INERT or _is_off(value):
            continue
        elif name in OFF:
            yield Problem(name, f"is {shown(value)}: {OFF[name].why}")
        else:
            near = nearest(name, {*known, *INERT, *OFF})
            hint = f"did you mean {near}? If not, r" if near else "r"
            yield Problem(
                name[:100],
                f"is not known for {method}, and might change what is computed; {hint}emove it where it does not",
            )
    if method == "LORA":
        yield from _start_problems(config.get(_START))
    elif method == "PROMPT_TUNING" and config.get("num_virtual_tokens") is None:
        yield Problem("num_virtual_tokens", "is missing; it says how many places the prompt has")


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a valid configuration that change the computation, with their defaults."""
    found = {}
    for name, known in METHODS[config["peft_type"]].items():
        value = config.get(name)
        found[name] = known.default if value is None else value
    return found


def _method_problem(method: Any) -> Problem:
    built = ", ".join(METHODS)
    if method is None:
        return Problem("peft_type", f"is missing, so the method is unknown; add one of {built}")
    return Problem(
        "peft_type",
        f"is {shown(method)}, a method that is not built; these are: {built}. Merge the adapter into its model with "
        "PEFT where it can be (merge_and_unload, then save_pretrained), and import the model",
    )


def _start_problems(start: Any) -> Iterator[Problem]:
    if start is None or isinstance(start, bool) or (isinstance(start, str) and start.lower() in _HARMLESS_STARTS):
        return
    text = str(start).lower()
    if any(text.startswith(name) for name in _CHANGED_BASE):
        yield Problem(
            _START,
            f"is {shown(start)}, which changed the base's weights: the adapter is only right on what was left of them. "
            "Save it converted to a plain one (save_pretrained with path_initial_model_for_weight_conversion)",
        )
    else:
        yield Problem(_START, f"is {shown(start)}; {NOT_BUILT}")


def _is_off(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})
