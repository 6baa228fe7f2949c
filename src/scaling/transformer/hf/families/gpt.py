"""GPT-NeoX (Pythia) and GPT-2."""

from __future__ import annotations

from typing import Any, Final

from scaling.transformer.hf.families.shared import (
    ATTENTION_DROPOUT,
    MOST_LAYERS,
    dropout,
    epsilon,
    plain,
    sizes,
    tied,
)
from scaling.transformer.hf.family import Family
from scaling.transformer.hf.fields import Choice, Computed, Config, Field, Ours, given
from scaling.transformer.hf.rope import Rope
from scaling.transformer.hf.tensors import Row, Table

QKV: Final = ("self_attention.query", "self_attention.key", "self_attention.value")

ONE_KV_HEAD_EACH: Final = {"norm_type": "layernorm", "mlp_bias": True}

EVERYWHERE: Final = ("dropout_embedding", "dropout_after_attention", "dropout_after_mlp")

GPT_NEOX: Final = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    parts=(
        *sizes(vocabulary=50432, hidden=6144, width=24576, layers=44, heads=64, length=2048),
        epsilon("layer_norm_eps", 1e-5),
        Field("attention_bias", bool, True, "attention_bias"),
        Field("use_parallel_residual", bool, True, "parallel_residual"),
        tied(False),
        plain("hidden_act", "gelu"),
        Rope(
            partial=0.25,
            base_name="rotary_emb_base",
            partial_name="rotary_pct",
            echoes=("rope_theta", "partial_rotary_factor"),
        ),
        ATTENTION_DROPOUT,
        dropout("hidden_dropout", EVERYWHERE),
    ),
    fixed={**ONE_KV_HEAD_EACH, "relative_position_embedding_type": "rotary"},
    table=Table(
        embedding=Row("gpt_neox.embed_in", ["embedding"]),
        block="gpt_neox.layers.{}.",
        rows=(
            Row("input_layernorm", ["input_layernorm"]),
            Row("post_attention_layernorm", ["post_attention_layernorm"]),
            Row("attention.query_key_value", QKV, order="heads"),
            Row("attention.dense", ["self_attention.dense"]),
            Row("mlp.dense_h_to_4h", ["mlp.dense_in"]),
            Row("mlp.dense_4h_to_h", ["mlp.dense_out"]),
        ),
        norm=Row("gpt_neox.final_layer_norm", ["norm"]),
        head=Row("embed_out", ["linear"]),
    ),
    # The former names of the dropouts, which are no longer read.
    inert_names=frozenset({"classifier_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob"}),
    ignored=(r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
    former_names=((r"lm_head\.weight", "embed_out.weight"),),
    modules_in_memory={"embed_out": "lm_head"},
)


def _read_width(config: Config) -> dict[str, Any]:
    return {"mlp_size": given(config, "n_inner", 4 * config["n_embd"])}


def _write_width(ours: Ours) -> dict[str, Any]:
    width = ours["mlp_size"]
    return {"n_inner": None if width == 4 * ours["hidden_size"] else width}


def _read_positions(config: Config) -> dict[str, Any]:
    length = given(config, "n_positions", 1024)
    return {"absolute_positions": length, "sequence_length": length}


GPT2: Final = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    parts=(
        Field("vocab_size", int, 50257, "vocab_size", above=0),
        Field("n_embd", int, 768, "hidden_size", above=0),
        Field("n_layer", int, 12, "num_layers", above=0, most=MOST_LAYERS),
        Field("n_head", int, 12, "num_attention_heads", above=0),
        Computed({"n_inner": int}, _read_width, _write_width, above=0),
        Computed(
            {"n_positions": int}, _read_positions, lambda ours: {"n_positions": ours["absolute_positions"]}, above=0
        ),
        epsilon("layer_norm_epsilon", 1e-5),
        tied(True),
        plain("activation_function", "gelu_new"),
        Choice(
            "scale_attn_weights", True, {True: {"attention_score_scale": None}, False: {"attention_score_scale": 1.0}}
        ),
        Choice("scale_attn_by_inverse_layer_idx", False, {False: {}}),
        dropout("resid_pdrop", ["dropout_after_attention", "dropout_after_mlp"], 0.1),
        dropout("embd_pdrop", ["dropout_embedding"], 0.1),
        dropout("attn_pdrop", ["dropout_attention_probs"], 0.1),
    ),
    fixed={**ONE_KV_HEAD_EACH, "attention_bias": True, "relative_position_embedding_type": "none"},
    table=Table(
        embedding=Row("transformer.wte", ["embedding"]),
        positions=(Row("transformer.wpe", ["positions"]),),
        block="transformer.h.{}.",
        rows=(
            Row("ln_1", ["input_layernorm"]),
            Row("attn.c_attn", QKV, transposed=True),
            Row("attn.c_proj", ["self_attention.dense"], transposed=True),
            Row("ln_2", ["post_attention_layernorm"]),
            Row("mlp.c_fc", ["mlp.dense_in"], transposed=True),
            Row("mlp.c_proj", ["mlp.dense_out"], transposed=True),
        ),
        norm=Row("transformer.ln_f", ["norm"]),
        head=Row("lm_head", ["linear"]),
    ),
    inert_names=frozenset(
        {
            "n_ctx",
            "n_special",
            "predict_special_tokens",
            "reorder_and_upcast_attn",
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
        }
    ),
    ignored=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
    former_names=((r"((?:wte|wpe|h|ln_f)\..*)", r"transformer.\1"),),
)
