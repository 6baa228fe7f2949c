"""Adapters of ours, as a training leaves them: peft computes the same with what is written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import Tensor

from scaling.core import ConfigError
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.hf.peft.translate import Ours
from scaling.transformer.hf.peft.values import Values
from tests.transformer.hf.in_memory import architecture_of, config_json
from tests.transformer.hf.peft.adapters import base_of, loaded, our_logits, their_logits, written
from tests.transformer.hf.test_logits import distance

ALL: Final = ["query", "key", "value", "dense", "dense_in", "siglu_weight", "dense_out"]
PLAIN: Final = [name for name in ALL if name != "siglu_weight"]
LORA: Final = {"rank": 3, "alpha": 4.5}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def adapter(name: str, sections: Mapping[str, Any], trained: str = "") -> Ours:
    """Return random tensors of methods, and of those of the base that a pattern names."""
    generator = torch.Generator().manual_seed(2)
    base = base_of(name)
    added = [p for p in plan_of(architecture_of(config_json(name), **sections)).parameters() if p.name not in base]
    tensors = {p.name: around(p.name, p.shape, generator) for p in added}
    if trained:
        for key, tensor in base.items():
            if re.search(trained, key):
                tensors[key] = tensor + 0.3 * torch.randn(tensor.shape, generator=generator)
    return Ours(sections, {key: Values.of(tensor) for key, tensor in tensors.items()})


def around(key: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    noise = 0.2 * torch.randn(shape, generator=generator)
    return 1.0 + noise if key.endswith(("magnitude", "scale")) else noise


CASES: Final[list[tuple[str, dict[str, Any], str]]] = [
    *((name, {"lora_config": {**LORA, "parallel_modules": PLAIN}}, "") for name in ("gpt_neox", "gpt2")),
    *((name, {"lora_config": {**LORA, "parallel_modules": ALL, "use_dora": True}}, "") for name in ("phi3", "qwen3")),
    (
        "gpt_neox",
        {"lora_config": {**LORA, "parallel_modules": ["query", "value"], "use_rslora": True, "bias": True}},
        "",
    ),
    (
        "phi3",
        {
            "lora_config": {
                **LORA,
                "name": "mine",
                "parallel_modules": [r"layers\.[23]\.self_attention", "siglu_weight"],
                "rank_pattern": {"key": 2, r"layers\.3": 4},
                "alpha_pattern": {r"layers\.2\.self_attention\.key": 3.0, r"layers\.3": 6.0},
            }
        },
        "",
    ),
    ("gemma2", {"lora_config": {**LORA, "parallel_modules": ["embedding", "head", "query"]}}, ""),
    ("llama", {"lora_config": {**LORA}}, r"(mlp|self_attention)\.\w+\.bias$"),
    (
        "gpt_neox",
        {"lora_config": {**LORA, "parallel_modules": ["dense"]}},
        r"layers\.[134]\.self_attention\.query\.|\.linear\.|norm",
    ),
    ("gpt2", {"lora_config": {**LORA, "parallel_modules": ["dense"]}}, r"layers\.2\.self_attention\.dense\.bias"),
    ("llama_yarn", {"lora_config": {**LORA}}, r"embedding"),
    ("qwen3", {"lora_config": {**LORA}, "finetunable_token_ids": [9, 2]}, r"layers\.2\.input_layernorm"),
    ("llama_yarn", {"lora_config": {**LORA}, "finetunable_token_ids": [9, 2]}, ""),
    *((name, {"finetunable_token_ids": [9, 2]}, "") for name in ("llama", "gemma2")),
    *((name, {"ia3_config": {"parallel_modules": ["key", "value", "dense_out"]}}, "") for name in ("gpt_neox", "gpt2")),
    ("gemma2", {"ia3_config": {"name": "own", "input_modules": []}}, r"layers\.5\.norm"),
    *((name, {"softprompt_config": {"name": "p", "n_tokens": 6}}, "") for name in ("gpt_neox", "granite")),
    ("llama", {"softprompt_config": {"name": "p", "n_tokens": 6}}, r"linear"),
    ("gpt_neox", {}, r"norm\.weight"),
]


@pytest.mark.parametrize(("name", "sections", "trained"), CASES)
def test_peft_computes_the_same(name: str, sections: dict[str, Any], trained: str, tmp_path: Path) -> None:
    ours = adapter(name, sections, trained)
    written(name, ours, tmp_path / "adapter")
    assert distance(their_logits(loaded(name, tmp_path / "adapter")), our_logits(name, ours)) < 1e-5


@pytest.mark.parametrize(
    ("name", "sections", "trained", "message"),
    [
        (
            "gpt_neox",
            {"lora_config": {**LORA, "alpha_pattern": {"key": 9.0}}},
            "",
            r"gpt_neox\.layers\.0\.attention\.query_key_value is .*query and .*key and .*value in one matrix, whose "
            r"adapter has one scale, but alpha / rank is 1\.5 for layers\.1\.self_attention\.query and 3 for "
            r"layers\.1\.self_attention\.key; train them with one, or merge",
        ),
        (
            "phi3",
            {"lora_config": {**LORA, "parallel_modules": ["query"], "use_dora": True}},
            "",
            r"qkv_proj has DoRA on layers\.1\.self_attention\.query, but not on .*key, .*value",
        ),
        ("llama", {"adapter_config": {"name": "a", "mlp_downsampling_factor": 0.5}}, "", "is of adapter_config, which"),
        ("llama", {"bitfit_bias_config": {"name": "b"}}, "bias", "is of bitfit_bias_config, which PEFT"),
        (
            "llama",
            {"lora_config": LORA, "softprompt_config": {"name": "p", "n_tokens": 2}},
            "",
            "is of lora_config and softprompt_config at once, which PEFT has no form for; merge",
        ),
        ("llama", {"lora_config": LORA}, r"2\.self_attention\.query\.weight", r"1\.self_attn\.q_proj is adapted"),
        ("llama", {"ia3_config": {}}, r"2\.self_attention\.key\.bias", r"the bias of .*k_proj is trained beside"),
        ("llama", {"finetunable_token_ids": [1]}, "linear", r"linear\.weight were trained beside rows of tokens alone"),
        ("llama", {}, "linear", "holds layers.6.linear.weight and no method that PEFT has a form for"),
    ],
)  # fmt: skip
def test_what_peft_has_no_form_for_is_refused(
    name: str, sections: dict[str, Any], trained: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        written(name, adapter(name, sections, trained), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
