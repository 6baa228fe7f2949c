"""An adapter as peft saves it, for the tiny Llama written by hand; without peft and transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.transformer.hf.by_hand import HEAD, HEADS, HIDDEN, KV_HEADS, LAYERS

RANK: Final = 3
CONFIG: Final[Mapping[str, Any]] = {
    "alpha_pattern": {},
    "base_model_name_or_path": "somebody/tiny",
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "lora_alpha": 6,
    "lora_dropout": 0.0,
    "peft_type": "LORA",
    "r": RANK,
    "rank_pattern": {},
    "revision": "main",
    "target_modules": ["q_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
}
AT: Final = "base_model.model.model.layers.0.self_attn"
QUERY: Final = f"{AT}.q_proj"


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return random tensors by the names of the file."""
    generator = torch.Generator().manual_seed(3)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(LAYERS):
        for name, heads in (("q_proj", HEADS), ("v_proj", KV_HEADS)):
            at = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            shapes |= {f"{at}.lora_A.weight": (RANK, HIDDEN), f"{at}.lora_B.weight": (heads * HEAD, RANK)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def write(
    folder: Path, config: Mapping[str, Any] | None = None, changes: Mapping[str, Tensor | None] | None = None
) -> Path:
    """Write an adapter; changes to None remove what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    merged = {name: value for name, value in {**CONFIG, **(config or {})}.items() if value is not None}
    (folder / "adapter_config.json").write_text(json.dumps(merged))
    held = {**tensors(), **(changes or {})}
    kept = {name: tensor.contiguous() for name, tensor in held.items() if tensor is not None}
    save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder
