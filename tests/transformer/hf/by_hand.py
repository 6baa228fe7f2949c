"""A tiny Llama as somebody saved it, written without `transformers`: configuration, weights, tokenizer, templates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend
from torch import Tensor

from scaling.transformer.data.tokenizer import train_tokenizer

VOCABULARY: Final = 271
"""Odd, and as many as the tokenizer has, or more."""
HIDDEN, LAYERS, HEADS, KV_HEADS, WIDTH = 16, 2, 4, 2, 24
HEAD = HIDDEN // HEADS
END, END_OF_TURN = 262, 263
"""Of a document and of a turn: tokens of the tokenizer, whose usual names say something else."""

CONFIG: Final[Mapping[str, Any]] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dtype": "float32",
    "eos_token_id": END,
    "head_dim": HEAD,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": WIDTH,
    "max_position_embeddings": 32,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KV_HEADS,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "tie_word_embeddings": False,
    "transformers_version": "5.0.0",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}

COMPANIONS: Final[Mapping[str, str]] = {
    "tokenizer_config.json": json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}),
    "special_tokens_map.json": json.dumps({"eos_token": "<|endoftext|>"}),
    "generation_config.json": json.dumps({"eos_token_id": [END, END_OF_TURN], "do_sample": True, "temperature": 0.5}),
    "chat_template.jinja": "{% for message in messages %}{{ message.content }}{% endfor %}",
    "additional_chat_templates/tools.jinja": "{{ tools }}",
}


def weights(dtype: torch.dtype = torch.float32, *, tied: bool = False, seed: int = 0) -> dict[str, Tensor]:
    """Return random weights by the names of the files."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        shapes |= {
            f"{at}input_layernorm.weight": (HIDDEN,),
            f"{at}post_attention_layernorm.weight": (HIDDEN,),
            f"{at}self_attn.q_proj.weight": (HEADS * HEAD, HIDDEN),
            f"{at}self_attn.k_proj.weight": (KV_HEADS * HEAD, HIDDEN),
            f"{at}self_attn.v_proj.weight": (KV_HEADS * HEAD, HIDDEN),
            f"{at}self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD),
            f"{at}mlp.gate_proj.weight": (WIDTH, HIDDEN),
            f"{at}mlp.up_proj.weight": (WIDTH, HIDDEN),
            f"{at}mlp.down_proj.weight": (HIDDEN, WIDTH),
        }
    shapes["model.norm.weight"] = (HIDDEN,)
    if not tied:
        shapes["lm_head.weight"] = (VOCABULARY, HIDDEN)
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def write_model(
    folder: Path,
    tensors: Mapping[str, Tensor] | None = None,
    *,
    shards: int = 1,
    config: Mapping[str, Any] | None = None,
    tokenizer: bool = True,
) -> Path:
    """Write a model folder; `config` are changes, None as a value removes a field."""
    folder.mkdir(parents=True)
    tensors = weights() if tensors is None else tensors
    merged = {**CONFIG, **(config or {})}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in merged.items() if value is not None}))
    write_weights(folder, tensors, shards=shards)
    if tokenizer:
        backend = Backend.from_str(train_tokenizer(["the cat sat on the mat"], END).to_str())
        backend.add_special_tokens(["<|im_end|>", "<|over|>"])
        assert [backend.token_to_id(token) for token in ("<|im_end|>", "<|over|>")] == [END, END_OF_TURN]
        (folder / "tokenizer.json").write_text(backend.to_str())
        for name, content in COMPANIONS.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(content)
    return folder


def write_weights(folder: Path, tensors: Mapping[str, Tensor], *, shards: int = 1) -> None:
    """Write tensors into one file, or into several with an index."""
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = [f"model-{number:05d}-of-{shards:05d}.safetensors" for number in range(1, shards + 1)]
    weight_map = {key: names[index % shards] for index, key in enumerate(tensors)}
    for name in names:
        save_file({key: tensors[key] for key, file in weight_map.items() if file == name}, folder / name)
    write_index(folder, weight_map)


def write_index(folder: Path, weight_map: Mapping[str, Any]) -> None:
    """Write an index."""
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": dict(weight_map)}))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def same_bits(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Return whether two sets of tensors are the same, type and bits."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8))
        for name in a
    )


def config_of(folder: Path) -> dict[str, Any]:
    """Return config.json."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found
