"""The repeated layer: attention and feed-forward, each added to the residual stream, and the order of norms."""

from __future__ import annotations

from typing import TypeAlias, final

from torch import Tensor, nn

from scaling.core import LayerNorm, ParallelMLP, ParallelSelfAttention, ParallelSwiGLUMLP, RMSNorm
from scaling.transformer.io import TransformerIO
from scaling.transformer.layers.residual import Residual

Norm: TypeAlias = LayerNorm | RMSNorm


class TransformerLayer(nn.Module):
    """The parts of a block, under their names in checkpoints. Each order of them is a class with a `forward`."""

    self_attention: ParallelSelfAttention
    mlp: ParallelMLP | ParallelSwiGLUMLP
    add_attention: Residual
    add_mlp: Residual

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    @final
    def attend(self, activations: Tensor, x: TransformerIO) -> Tensor:
        """Return the output of attention for some activations of a micro-batch."""
        attended: Tensor = self.self_attention(activations, x.position_ids, x.document_ids, x.sample_positions, x.past)
        return attended


@final
class PreNorm(TransformerLayer):
    """x + attention(norm(x)), then x + mlp(norm(x)) (arXiv:2002.04745)."""

    input_layernorm: Norm
    post_attention_layernorm: Norm

    def forward(self, x: TransformerIO) -> TransformerIO:
        """Return the micro-batch with new activations."""
        h, samples = x.activations, x.sample_positions
        h = self.add_attention(h, self.attend(self.input_layernorm(h), x), samples)
        h = self.add_mlp(h, self.mlp(self.post_attention_layernorm(h)), samples)
        return x.with_activations(h)


@final
class PostNorm(TransformerLayer):
    """x + norm(attention(x)), then x + norm(mlp(x)) (OLMo 2, arXiv:2501.00656)."""

    attention_output_layernorm: Norm
    mlp_output_layernorm: Norm

    def forward(self, x: TransformerIO) -> TransformerIO:
        """Return the micro-batch with new activations."""
        h, samples = x.activations, x.sample_positions
        h = self.add_attention(h, self.attention_output_layernorm(self.attend(h, x)), samples)
        h = self.add_mlp(h, self.mlp_output_layernorm(self.mlp(h)), samples)
        return x.with_activations(h)


@final
class SandwichNorm(TransformerLayer):
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x))) (arXiv:2105.13290, Gemma 2)."""

    input_layernorm: Norm
    attention_output_layernorm: Norm
    post_attention_layernorm: Norm
    mlp_output_layernorm: Norm

    def forward(self, x: TransformerIO) -> TransformerIO:
        """Return the micro-batch with new activations."""
        h, samples = x.activations, x.sample_positions
        attended = self.attend(self.input_layernorm(h), x)
        h = self.add_attention(h, self.attention_output_layernorm(attended), samples)
        fed_forward = self.mlp(self.post_attention_layernorm(h))
        return x.with_activations(self.add_mlp(h, self.mlp_output_layernorm(fed_forward), samples))


@final
class NormAfterSum(TransformerLayer):
    """norm(x + attention(x)), then norm(x + mlp(x)) (arXiv:1706.03762)."""

    attention_output_layernorm: Norm
    mlp_output_layernorm: Norm

    def forward(self, x: TransformerIO) -> TransformerIO:
        """Return the micro-batch with new activations."""
        h, samples = x.activations, x.sample_positions
        h = self.attention_output_layernorm(self.add_attention(h, self.attend(h, x), samples))
        h = self.mlp_output_layernorm(self.add_mlp(h, self.mlp(h), samples))
        return x.with_activations(h)


@final
class Parallel(TransformerLayer):
    """x + attention(norm(x)) + mlp(norm(x)), each branch with a norm of its own (GPT-NeoX, arXiv:2204.06745)."""

    input_layernorm: Norm
    post_attention_layernorm: Norm

    def forward(self, x: TransformerIO) -> TransformerIO:
        """Return the micro-batch with new activations."""
        h, samples = x.activations, x.sample_positions
        attended = self.add_attention(h, self.attend(self.input_layernorm(h), x), samples)
        return x.with_activations(self.add_mlp(attended, self.mlp(self.post_attention_layernorm(h)), samples))


@final
class OneNormParallel(TransformerLayer):
    """x + attention(y) + mlp(y) with y = norm(x) (GPT-J; PaLM, arXiv:2204.02311)."""

    input_layernorm: Norm

    def forward(self, x: TransformerIO) -> TransformerIO:
        """Return the micro-batch with new activations."""
        h, samples = x.activations, x.sample_positions
        normalised = self.input_layernorm(h)
        attended = self.add_attention(h, self.attend(normalised, x), samples)
        return x.with_activations(self.add_mlp(attended, self.mlp(normalised), samples))
