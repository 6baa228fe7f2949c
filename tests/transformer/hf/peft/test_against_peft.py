"""Adapters of every method against peft: its adapters here, ours there, and back to the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import peft
import pytest
import torch
from safetensors.torch import load_file

from scaling.transformer.hf.peft.folder import WEIGHTS_FILE
from tests.transformer.hf.by_hand import same_bits
from tests.transformer.hf.peft.adapters import forms, loaded, our_logits, read, saved, state, their_logits, written
from tests.transformer.hf.test_logits import distance

LLAMA: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NEOX: Final = ("query_key_value", "attention.dense", "dense_h_to_4h", "dense_4h_to_h")
TARGETS: Final = {
    "llama": LLAMA,
    "llama_yarn": LLAMA,
    "qwen3": LLAMA,
    "gemma2": LLAMA,
    "granite": LLAMA,
    "gpt_neox": NEOX,
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
}
FEED_FORWARD: Final = {"gpt_neox": "dense_4h_to_h", "gpt2": "mlp.c_proj"}
HEADS: Final = {"gpt_neox": ("embed_in", "lm_head"), "gpt2": ("wte", "lm_head")}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def lora(name: str, **changes: Any) -> peft.LoraConfig:
    fields = {
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 6,
        "target_modules": list(TARGETS[name]),
        "fan_in_fan_out": name == "gpt2",
    }
    return peft.LoraConfig(**{**fields, **changes})


def config_of(name: str, method: str) -> peft.PeftConfig:
    embedding, head = HEADS.get(name, ("embed_tokens", "lm_head"))
    first, *rest = TARGETS[name]
    last = FEED_FORWARD.get(name, "down_proj")
    match method:
        case "lora":
            return lora(name)
        case "patterns":
            return lora(name, use_rslora=True, rank_pattern={first: 3, f".*1.*{last}": 2}, alpha_pattern={last: 5.5})
        case "dora":
            return lora(name, use_dora=True)
        case "lora_bias":
            return lora(name, lora_bias=True, bias="lora_only")
        case "some_layers":
            return lora(name, layers_to_transform=[1, 2], exclude_modules=rest[-1:], bias="all")
        case "ends":
            return lora(name, target_modules=[first, embedding, head])
        case "saved":
            norm = "ln_1" if name == "gpt2" else "input_layernorm"
            return lora(name, target_modules=[first], modules_to_save=[norm, *rest[-1:]], bias="all")
        case "tables":
            return lora(name, target_modules=[first], modules_to_save=[embedding, head])
        case "tied":
            return lora(name, target_modules=[first], modules_to_save=[embedding], ensure_weight_tying=True)
        case "rows":
            return lora(name, target_modules=[first], trainable_token_indices=[7, 3])
        case "ia3":
            return peft.IA3Config(task_type="CAUSAL_LM", target_modules=[first, last], feedforward_modules=[last])
        case "prompt":
            return peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
        case "token_rows":
            return peft.TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[7, 3], target_modules=[embedding])
    assert method == "norms"
    return peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm"])


METHODS: Final = (
    *("lora", "patterns", "dora", "lora_bias", "some_layers", "ends", "saved", "rows"),
    *("ia3", "prompt", "token_rows", "norms"),
)
CASES: Final = [
    *((name, method) for name in ("llama", "qwen3", "gpt_neox", "gemma2") for method in METHODS),
    *((name, method) for name in ("phi3", "gpt2") for method in ("lora", "dora", "lora_bias", "saved", "ia3")),
    *(("llama_yarn", method) for method in ("ends", "rows", "token_rows", "tied")),
    ("granite", "prompt"),
    ("granite", "ends"),
    ("qwen3", "tables"),
    ("gpt_neox", "tables"),
]
SCALED: Final = [("granite", "prompt")]
"""What is multiplied on the way, and so not the same to the last bit."""
QUICK: Final = [
    *(("llama", method) for method in ("patterns", "dora", "some_layers", "saved", "rows", "prompt", "norms")),
    *(("gpt_neox", method) for method in ("lora", "dora", "lora_bias", "ia3", "saved", "ends")),
    *(
        ("phi3", "lora"),
        ("gpt2", "lora"),
        ("gpt2", "ia3"),
        ("gemma2", "token_rows"),
        ("llama_yarn", "tied"),
        ("granite", "prompt"),
    ),
]


@pytest.mark.parametrize(
    ("name", "method"), [pytest.param(*case, marks=[] if case in QUICK else [pytest.mark.slow]) for case in CASES]
)
def test_an_adapter_of_peft_computes_the_same_here_and_comes_back_bit_by_bit(
    name: str, method: str, tmp_path: Path
) -> None:
    theirs = saved(name, config_of(name, method), tmp_path / "theirs")
    ours = read(name, tmp_path / "theirs")
    assert distance(our_logits(name, ours), their_logits(theirs)) < 1e-5
    written(name, ours, tmp_path / "again")
    again = loaded(name, tmp_path / "again")
    assert distance(their_logits(again), their_logits(theirs)) < 1e-5
    before, after = load_file(tmp_path / "theirs" / WEIGHTS_FILE), load_file(tmp_path / "again" / WEIGHTS_FILE)
    copies = {key for key in before if is_copy(key)}
    assert after.keys() == before.keys() - copies
    assert (name, method) in SCALED or same_bits({key: before[key] for key in after}, after)
    assert forms(again) == forms(theirs)
    assert state(again).keys() - copies == after.keys()


def is_copy(key: str) -> bool:
    """Return whether a tensor is the base's, saved once more."""
    return key.endswith("base_layer.weight") or ".original_module." in key or ".modules_to_save." in key
