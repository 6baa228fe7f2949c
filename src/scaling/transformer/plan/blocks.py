"""The possible orders of the parts of a block. The code that runs each is in `layers/block.py`, under the same name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from scaling.transformer.plan.attention import AttentionPlan
from scaling.transformer.plan.model import LayerPlan
from scaling.transformer.plan.parts import FeedForwardPlan, NormPlan, PartPlan, ResidualPlan


@dataclass(frozen=True, kw_only=True)
class BlockParts:
    """The parts that every block has; the order determines the norms and their places."""

    norm: NormPlan
    attention: AttentionPlan
    feed_forward: FeedForwardPlan
    add_attention: ResidualPlan
    add_mlp: ResidualPlan


def pre(block: BlockParts) -> LayerPlan:
    """x + attention(norm(x)), then x + mlp(norm(x)) (arXiv:2002.04745)."""
    return _block("pre", block, before=["input_layernorm"], between=["post_attention_layernorm"])


def post(block: BlockParts) -> LayerPlan:
    """x + norm(attention(x)), then x + norm(mlp(x)) (OLMo 2, arXiv:2501.00656)."""
    return _block("post", block, between=["attention_output_layernorm"], behind=["mlp_output_layernorm"])


def sandwich(block: BlockParts) -> LayerPlan:
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x))) (arXiv:2105.13290, Gemma 2)."""
    between = ["attention_output_layernorm", "post_attention_layernorm"]
    return _block("sandwich", block, before=["input_layernorm"], between=between, behind=["mlp_output_layernorm"])


def after_sum(block: BlockParts) -> LayerPlan:
    """norm(x + attention(x)), then norm(x + mlp(x)) (arXiv:1706.03762)."""
    return _block("after_sum", block, between=["attention_output_layernorm"], behind=["mlp_output_layernorm"])


def parallel(block: BlockParts) -> LayerPlan:
    """x + attention(norm(x)) + mlp(norm(x)), each branch with a norm of its own (GPT-NeoX, arXiv:2204.06745)."""
    return _block("parallel", block, before=["input_layernorm"], between=["post_attention_layernorm"])


def one_norm_parallel(block: BlockParts) -> LayerPlan:
    """x + attention(y) + mlp(y) with y = norm(x) (GPT-J; PaLM, arXiv:2204.02311)."""
    return _block("one_norm_parallel", block, before=["input_layernorm"])


def _block(
    kind: str,
    block: BlockParts,
    *,
    before: Iterable[str] = (),
    between: Iterable[str] = (),
    behind: Iterable[str] = (),
) -> LayerPlan:
    """Return a block with norms of these names before attention, between attention and MLP, and after the MLP."""
    parts: list[tuple[str, PartPlan]] = [
        *((name, block.norm) for name in before),
        ("self_attention", block.attention),
        *((name, block.norm) for name in between),
        ("mlp", block.feed_forward),
        *((name, block.norm) for name in behind),
        ("add_attention", block.add_attention),
        ("add_mlp", block.add_mlp),
    ]
    return LayerPlan(kind, tuple(parts))
