"""A family of models in one file: settings of a foreign form are read into a plan, and its blocks have an order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from scaling.core import LayerNorm, LayerSpec, NormType, RMSNorm, Topology, Unscaled
from scaling.transformer.io import TransformerIO
from scaling.transformer.layers.block import TransformerLayer
from scaling.transformer.model import LAYERS, specs_of
from scaling.transformer.plan.attention import AttentionPlan, RotationPlan
from scaling.transformer.plan.model import Arithmetic, LayerPlan, ModelPlan
from scaling.transformer.plan.parts import (
    DropoutPlan,
    FeedForwardPlan,
    NormPlan,
    PartPlan,
    ResidualPlan,
    TablePlan,
)

SETTINGS: Mapping[str, Any] = {
    "model_type": "toy",
    "d_model": 24,
    "n_layers": 3,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 10,
    "d_ffn": 40,
    "n_vocab": 31,
    "n_context": 12,
    "rope_theta": 500.0,
    "rms_eps": 1e-6,
    "init_std": 0.2,
}
"""Heads are not hidden size / heads wide; query, key and value have biases, the layer behind them has none."""


@final
class PostBranchNorm(TransformerLayer):
    """x + norm(attention(x)), then x + norm(mlp(x)) (arXiv:2501.00656)."""

    post_attention_layernorm: LayerNorm | RMSNorm
    post_feedforward_layernorm: LayerNorm | RMSNorm

    def forward(self, x: TransformerIO) -> TransformerIO:
        h, samples = x.activations, x.sample_positions
        h = self.add_attention(h, self.post_attention_layernorm(self.attend(h, x)), samples)
        h = self.add_mlp(h, self.post_feedforward_layernorm(self.mlp(h)), samples)
        return x.with_activations(h)


TOY_LAYERS = {**LAYERS, "post_branch_norm": PostBranchNorm}


def plan_of_toy(settings: Mapping[str, Any]) -> ModelPlan:
    """Return the model that settings of this family describe."""
    hidden, heads, size, std = (settings[name] for name in ("d_model", "n_heads", "head_dim", "init_std"))
    norm = NormPlan(kind=NormType.RMS, features=hidden, epsilon=settings["rms_eps"])
    attention = AttentionPlan(
        hidden=hidden,
        heads=heads,
        kv_heads=settings["n_kv_heads"],
        head_size=size,
        fused=False,
        scale=size**-0.5,
        causal=True,
        projection_bias=True,
        output_bias=False,
        projection_std=std,
        output_std=std / (2 * settings["n_layers"]) ** 0.5,
        rotation=RotationPlan(size, settings["rope_theta"], False, Unscaled(), settings["n_context"]),
        window=settings.get("window"),
        windowed_heads=settings.get("n_window_heads"),
        cap=settings.get("score_cap"),
    )
    feed_forward = FeedForwardPlan(
        hidden=hidden,
        width=settings["d_ffn"],
        activation="silu",
        gated=True,
        input_bias=False,
        output_bias=False,
        input_std=std,
        output_std=std,
    )
    parts: tuple[tuple[str, PartPlan], ...] = (
        ("self_attention", attention),
        ("post_attention_layernorm", norm),
        ("mlp", feed_forward),
        ("post_feedforward_layernorm", norm),
        ("add_attention", ResidualPlan("after_attention")),
        ("add_mlp", ResidualPlan("after_mlp")),
    )
    table = TablePlan(vocabulary=settings["n_vocab"], hidden=hidden, std=std)
    matrix = TablePlan(vocabulary=settings["n_vocab"], hidden=hidden, std=std, multiplied=True)
    return ModelPlan(
        runs=(
            (1, LayerPlan("embedding", (("embedding", table), ("dropout", DropoutPlan("embedding", 0.0))))),
            (settings["n_layers"], LayerPlan("post_branch_norm", parts)),
            (1, LayerPlan("norm", (("norm", norm),))),
            (1, LayerPlan("head", (("linear", matrix),))),
        ),
        sequence=settings["n_context"],
        arithmetic=Arithmetic(precision="float64"),
    )


def toy_layers(settings: Mapping[str, Any], topology: Topology) -> list[LayerSpec]:
    """Return the layers of a model of this family."""
    return specs_of(plan_of_toy(settings), topology, seed=0, layers=TOY_LAYERS)
