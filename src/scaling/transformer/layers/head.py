"""The last layers: final norm, and the head over this rank's part of the vocabulary, which makes no logits itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, final

from torch import Tensor, nn
from typing_extensions import Self

from scaling.core import (
    Constant,
    LayerNorm,
    LogitTerm,
    LossSum,
    Output,
    Place,
    RMSNorm,
    TokenLosses,
    TokenScores,
    VocabParallelEmbedding,
    all_gather_vocabulary,
    enter_model_parallel,
    linear_cross_entropy,
    linear_cross_entropy_sum,
    linear_logits,
    linear_token_scores,
    new_parameter,
    padded_shard,
    tokens_per_chunk,
    without_padding,
)
from scaling.transformer.io import TransformerIO


@final
class LayerNormWrapper(nn.Module):
    """The norm of the residual stream after the last block."""

    def __init__(self, norm: LayerNorm | RMSNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: TransformerIO) -> TransformerIO:
        """Return the normalised micro-batch."""
        return x.with_activations(self.norm(x.activations))


@final
@dataclass(frozen=True)
class HeadOutput:
    """The output of the model: everything that logits are computed from, but no logits.

    `token_losses` computes cross entropies with as few logits at a time as is wanted; another kind of loss calls
    `logits()`. Gradients reach the model in both cases.
    """

    hidden: Tensor
    """[b, s, hidden], the same on all model ranks. Backward: all-reduce (or reduce-scatter) of its gradient."""
    weight: Tensor
    """[v, hidden]: this rank's part of the vocabulary, without padding. v may be 0."""
    bias: Tensor | None = None
    """[v]."""
    terms: tuple[LogitTerm, ...] = ()
    """Products that are added to hidden weight^T: of a low-rank update, or of rows stored apart from the matrix."""
    scale: float = 1.0
    """Factor of hidden weight^T + terms + bias."""
    cap: float | None = None
    """Scaled logits x become cap * tanh(x / cap). None: no cap."""
    offset: int = 0
    """Id of the first token of this rank's part of the vocabulary."""
    part: int | None = None
    """Size of the largest part of the vocabulary on any model rank. None: the size of this part."""
    place: Place = field(default_factory=Place)
    """Place whose model axis cuts the vocabulary."""

    def logits(self) -> Tensor:
        """Return the logits [b, s, v], in the type of the hidden states."""
        logits = linear_logits(self.hidden, self.weight, self.bias, terms=self.terms, scale=self.scale, cap=self.cap)
        return logits.to(self.hidden.dtype)

    def token_losses(self, targets: Tensor, *, chunk_size: int | None = None, normalisers: bool = False) -> TokenLosses:
        """Return the cross entropy of each token, as `linear_cross_entropy` does, for targets int64 [b, s].

        Collective over the model axis.
        """
        return linear_cross_entropy(
            self.hidden,
            self.weight,
            targets,
            bias=self.bias,
            terms=self.terms,
            scale=self.scale,
            cap=self.cap,
            group=self.place.group,
            offset=self.offset,
            chunk_size=chunk_size,
            normalisers=normalisers,
        )

    def loss_sum(
        self, targets: Tensor, weights: Tensor, *, z_loss: float = 0.0, chunk_size: int | None = None
    ) -> LossSum:
        """Return the sum of the tokens' losses times `weights` [b, s], as `linear_cross_entropy_sum` does.

        `chunk_size` None: a fast number of tokens at a time (`tokens_per_chunk`). Collective over the model axis.
        """
        if chunk_size is None:
            part = self.weight.shape[0] if self.part is None else self.part
            chunk_size = tokens_per_chunk(targets.numel(), part, self.hidden.device)
        return linear_cross_entropy_sum(
            self.hidden,
            self.weight,
            targets,
            weights,
            z_loss=z_loss,
            bias=self.bias,
            terms=self.terms,
            scale=self.scale,
            cap=self.cap,
            group=self.place.group,
            offset=self.offset,
            chunk_size=chunk_size,
        )

    def all_logits(self, vocabulary: int) -> Tensor:
        """Return the logits [b, s, vocabulary] over all model ranks, on all of them. Collective over the model axis."""
        return all_gather_vocabulary(self.logits(), self.place, vocabulary)

    def token_scores(self, targets: Tensor, *, chunk_size: int) -> TokenScores:
        """Return log-probabilities and most likely tokens [b * s], as `linear_token_scores` does, for targets int64.

        Collective over the model axis.
        """
        return linear_token_scores(
            self.hidden.flatten(0, 1),
            self.weight,
            targets.flatten(),
            bias=self.bias,
            terms=[term._replace(hidden=term.hidden.flatten(0, 1)) for term in self.terms],
            scale=self.scale,
            cap=self.cap,
            group=self.place.group,
            offset=self.offset,
            chunk_size=chunk_size,
        )

    def behind(self, tokens: int) -> Self:
        """Return the output for all but the first `tokens` tokens of each row."""
        terms = tuple(term._replace(hidden=term.hidden[:, tokens:]) for term in self.terms)
        return replace(self, hidden=self.hidden[:, tokens:], terms=terms)

    def at(self, places: Tensor) -> Self:
        """Return the output for some tokens as one row; `places` int64 [n] are indices through all rows."""
        terms = tuple(term._replace(hidden=term.hidden.flatten(0, 1)[places].unsqueeze(0)) for term in self.terms)
        return replace(self, hidden=self.hidden.flatten(0, 1)[places].unsqueeze(0), terms=terms)


@final
class LogitBias(nn.Module):
    """A number for each token of the vocabulary, which is added to its logit; cut like the head's matrix."""

    def __init__(self, vocabulary: int, *, place: Place) -> None:
        super().__init__()
        self.shard = padded_shard(vocabulary, place.parts, place.index, dim=0)
        self.weight = new_parameter((vocabulary,), Constant(0.0), shard=self.shard, dtype=place.dtype)


@final
class LogitRange(nn.Module):
    """The factor of the logits, and the size at which they are capped."""

    def __init__(self, scale: float = 1.0, cap: float | None = None) -> None:
        super().__init__()
        self.scale = scale
        self.cap = cap


def _output(
    x: TransformerIO, table: VocabParallelEmbedding, bias: LogitBias | None, logits: LogitRange | None
) -> HeadOutput:
    products = table.products(enter_model_parallel(x.activations, table.place))
    if bias is not None:
        products = products.plus(bias=without_padding(bias.weight, bias.shard))
    logits = logits or LogitRange()
    return HeadOutput(
        products.hidden,
        products.weight,
        products.bias,
        products.terms,
        scale=logits.scale,
        cap=logits.cap,
        offset=table.shard.offset,
        part=table.shard.local_length,
        place=table.place,
    )


@final
class TransformerLMHead(nn.Module):
    """A head with a matrix of its own."""

    compiles: ClassVar[bool] = False
    """There is nothing to fuse: the loss computes the products."""

    def __init__(
        self, linear: VocabParallelEmbedding, logit_bias: LogitBias | None = None, logits: LogitRange | None = None
    ) -> None:
        super().__init__()
        self.linear = linear
        self.logit_bias = logit_bias
        self.logits = logits

    def forward(self, x: TransformerIO) -> HeadOutput:
        """Return the output that logits are computed from."""
        return _output(x, self.linear, self.logit_bias, self.logits)

    def described_outputs(self) -> Mapping[str, Sequence[Output]]:
        """Return nothing: there are no logits before the loss computes them."""
        return {"": []}


@final
class TransformerLMHeadTied(nn.Module):
    """A head whose matrix is the embedding's, which the first layer shares under the tie `embedding_tying`."""

    compiles: ClassVar[bool] = False
    """There is nothing to fuse: the loss computes the products."""

    def __init__(
        self, embedding: VocabParallelEmbedding, logit_bias: LogitBias | None = None, logits: LogitRange | None = None
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.logit_bias = logit_bias
        self.logits = logits

    def forward(self, x: TransformerIO) -> HeadOutput:
        """Return the output that logits are computed from."""
        return _output(x, self.embedding, self.logit_bias, self.logits)

    def described_outputs(self) -> Mapping[str, Sequence[Output]]:
        """Return nothing: there are no logits before the loss computes them."""
        return {"": []}
