"""Fields, settings and names of tensors that several families have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from scaling.transformer.hf.fields import Choice, Computed, Config, Field, Ours
from scaling.transformer.hf.tensors import Row, Table

MOST_LAYERS: Final = 4096
"""Many times more than any model has, and few enough to be checked quickly."""

PLAIN: Final[Mapping[str, str]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "relu": "relu",
    "relu2": "squared_relu",
}
"""Their names of activations, with ours; of several names for one of ours, the first is written."""


def gated(name: str, default: str) -> Choice:
    """Return the field of the activation of a gated MLP."""
    return Choice(
        name, default, {theirs: {"mlp_type": "swiglu", "activation_function": ours} for theirs, ours in PLAIN.items()}
    )


def plain(name: str, default: str) -> Choice:
    """Return the field of the activation of an MLP without a gate; the default is preferred to its synonyms."""
    names = {default: PLAIN[default], **PLAIN}
    return Choice(
        name, default, {theirs: {"mlp_type": "default", "activation_function": ours} for theirs, ours in names.items()}
    )


def tied(default: bool) -> Field:
    """Return the field that says whether the head is tied to the embedding."""
    return Field("tie_word_embeddings", bool, default, "weight_tying")


def dropout(name: str, keys: Sequence[str], default: float = 0.0) -> Computed:
    """Return the field of a dropout at several places."""

    def read(config: Config) -> dict[str, Any]:
        given = config.get(name)
        return dict.fromkeys(keys, default if given is None else given)

    return Computed({name: float}, read, lambda ours: {name: ours[keys[0]]})


ATTENTION_DROPOUT: Final = dropout("attention_dropout", ["dropout_attention_probs"])


def head_size(default: int | None = None, *, written: Callable[[Ours], bool] = lambda ours: True) -> Computed:
    """Return the field of the size of a head; null: hidden size / heads. `written`: whether to write the field."""

    def read(config: Config) -> dict[str, Any]:
        size = config.get("head_dim", default)
        follows = size is None or size * config["num_attention_heads"] == config["hidden_size"]
        return {"attention_head_size": None if follows else size}

    def write(ours: Ours) -> dict[str, Any]:
        return {"head_dim": ours["attention_head_size"]} if written(ours) else {}

    return Computed({"head_dim": int}, read, write)


def is_unusual(ours: Ours) -> bool:
    """Return whether heads have another size than hidden size / heads."""
    return bool(ours["attention_head_size"] * ours["num_attention_heads"] != ours["hidden_size"])


UNUSUAL_HEAD_SIZE: Final = head_size(written=is_unusual)
"""Head size in families whose classes have no such field, but use it where it is given."""


def kv_heads(default: int | None) -> Computed:
    """Return the field of key and value heads; null: as many as query heads."""

    def read(config: Config) -> dict[str, Any]:
        given = config.get("num_key_value_heads", default)
        return {"attention_num_kv_heads": config["num_attention_heads"] if given is None else given}

    def write(ours: Ours) -> dict[str, Any]:
        return {"num_key_value_heads": ours["attention_num_kv_heads"]}

    return Computed({"num_key_value_heads": int}, read, write)


def sizes(*, vocabulary: int, hidden: int, width: int, layers: int, heads: int, length: int) -> tuple[Field, ...]:
    """Return the fields of the sizes, with their defaults."""
    return (
        Field("vocab_size", int, vocabulary, "vocab_size", above=0),
        Field("hidden_size", int, hidden, "hidden_size", above=0),
        Field("intermediate_size", int, width, "mlp_size", above=0),
        Field("num_hidden_layers", int, layers, "num_layers", above=0, most=MOST_LAYERS),
        Field("num_attention_heads", int, heads, "num_attention_heads", above=0),
        Field("max_position_embeddings", int, length, "sequence_length", above=0),
    )


def epsilon(name: str, default: float) -> Field:
    """Return the field of the number that norms add to the variance."""
    return Field(name, float, default, "layernorm.layernorm_epsilon", above=0)


ATTENTION_BIAS: Final = Field("attention_bias", bool, False, "attention_bias")
"""Bias of all four projections."""

MLP_BIAS: Final = Field("mlp_bias", bool, False, "mlp_bias")

RMS: Final[Mapping[str, Any]] = {"norm_type": "rms", "relative_position_embedding_type": "rotary"}
"""Settings that are the same in nearly all present families."""

NO_BIAS: Final[Mapping[str, Any]] = {"attention_bias": False, "mlp_bias": False}

ROTARY_FREQUENCIES: Final = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
"""Tensors of old files, which follow from the configuration."""


def llama_names(
    *,
    between: Sequence[Row] = (Row("post_attention_layernorm", ["post_attention_layernorm"]),),
    qkv: Sequence[Row] = (
        Row("self_attn.q_proj", ["self_attention.query"]),
        Row("self_attn.k_proj", ["self_attention.key"]),
        Row("self_attn.v_proj", ["self_attention.value"]),
    ),
    gate_and_up: Sequence[Row] = (Row("mlp.gate_proj", ["mlp.dense_in"]), Row("mlp.up_proj", ["mlp.siglu_weight"])),
) -> Table:
    """Return the names of Llama and of families that adopted them, with `between` as the norms after the first."""
    return Table(
        embedding=Row("model.embed_tokens", ["embedding"]),
        block="model.layers.{}.",
        rows=(
            *qkv,
            Row("self_attn.o_proj", ["self_attention.dense"]),
            Row("self_attn.q_norm", ["self_attention.norm_query"]),
            Row("self_attn.k_norm", ["self_attention.norm_key"]),
            *gate_and_up,
            Row("mlp.down_proj", ["mlp.dense_out"]),
            Row("input_layernorm", ["input_layernorm"]),
            *between,
        ),
        norm=Row("model.norm", ["norm"]),
        head=Row("lm_head", ["linear"]),
    )
