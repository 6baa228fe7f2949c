"""Multi-head, grouped-query and multi-query self-attention, heads cut over the model axis.

Shape suffixes: B batch, S sequence, E hidden, H query heads of this rank, K key-value heads of this rank, D head
features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast, final

from torch import Tensor, nn

from scaling.core.boxes import Former
from scaling.core.errors import LayoutError
from scaling.core.nn.attention_core import AttentionCore, ScaledDotProduct
from scaling.core.nn.cached_attention import Past
from scaling.core.nn.joined import JoinedLayers, Joins
from scaling.core.nn.key_query_norm import KeyQueryNorm
from scaling.core.nn.linear import ColumnParallelLinear, RowParallelLinear, project_all
from scaling.core.nn.outputs import Output, placement_of
from scaling.core.nn.parameter import Initializer, meta, update_meta
from scaling.core.nn.place import Place, enter_model_parallel
from scaling.core.nn.rotary import RotaryEmbedding
from scaling.core.nn.shard import Heads

FUSED = "query_key_value"
"""Name of the layer that projects to queries, keys and values with one matrix product."""


@final
class ParallelSelfAttention(Joins):
    """Self-attention over packed documents; each model rank computes its heads.

    `projections` are the layers `query`, `key` and `value` with `Heads` as output features, or one fused layer
    `query_key_value` of these three (`attention_projections` makes either). Where there are fewer key-value heads than
    ranks, neighbouring ranks hold the same head and sum its gradient; then the layers cannot be fused. `core` computes
    attention, `dense` projects the result. Queries, keys and values may be clipped; queries and keys may then be
    normalised, before they are rotated. Communicates: one all-reduce forward and one backward (or their
    sequence-parallel halves), and the communication of the norm.
    Sources: arXiv:1706.03762 (attention), arXiv:1911.02150 (multi-query), arXiv:2305.13245 (grouped-query),
    arXiv:1909.08053 section 3 (cut by heads).
    """

    def __init__(
        self,
        projections: Mapping[str, ColumnParallelLinear],
        core: AttentionCore,
        dense: RowParallelLinear,
        *,
        head_dim: int,
        rotary: RotaryEmbedding | None = None,
    ) -> None:
        super().__init__()
        queries, attended = next(iter(projections.values())).output_sizes[0], dense.inputs.length
        if queries != attended:
            raise LayoutError(
                f"a rank has {queries} features of query heads, but the layer that leads out takes {attended}: the "
                f"number of query heads must be divisible by model_parallel_size ({dense.place.parts})"
            )
        for name, layer in projections.items():
            self.add_module(name, layer)
        self._projections = tuple(projections)
        self.core = core
        self.dense = dense
        self.head_dim = head_dim
        self.rotary = rotary
        self.norm_query: nn.Module | None = None
        self.norm_key: nn.Module | None = None
        self._norm: KeyQueryNorm | None = None
        self._limit: float | None = None
        self._uncompiled_core: Callable[..., Any] | None = None

    def with_key_query_norm(self, norm: KeyQueryNorm) -> ParallelSelfAttention:
        """Normalise queries and keys before they are rotated. `norm` may communicate (see its class)."""
        self.norm_query, self.norm_key, self._norm = norm.query, norm.key, norm
        return self

    def with_clipping(self, limit: float) -> ParallelSelfAttention:
        """Clip queries, keys and values to [-limit, limit] right after their projections (OLMo, arXiv:2402.00838)."""
        self._limit = limit
        return self

    def leave_uncompiled(self, disable: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Make the layer a function of its input alone, as compiled code has to be.

        When a layer is run again, the angles and masks that the layers keep may be those of another micro-batch. So
        angles are computed anew, and masks outside of compiled code.
        """
        if self.rotary is not None:
            self.rotary.keep_on(self.dense.weight.device)
        self._uncompiled_core = disable(self.core)

    def described_outputs(self) -> Mapping[str, Sequence[Output]]:
        """Return the outputs of the modules within: heads of this rank, which it may share with neighbours."""
        of_heads = [
            Output(placement_of(shard))
            for name in self._projections
            for _, shard in cast(ColumnParallelLinear, self._modules[name]).outputs.values()
        ]
        queries, keys, _ = of_heads
        # One object rotates both queries and keys, so its outputs have no single placement.
        return {"norm_query": [queries], "norm_key": [keys], "core": [queries], "rotary": []}

    def join(self) -> None:
        """Compute queries, keys and values with one matrix product, where no gradient is wanted."""
        self.joined = JoinedLayers([cast(ColumnParallelLinear, self._modules[name]) for name in self._projections])

    def forward(
        self,
        x_BSE: Tensor,
        position_ids: Tensor,
        document_ids: Tensor | None,
        samples: Tensor,
        past: Past | None = None,
    ) -> Tensor:
        """Return the attention output, shaped as `x_BSE` (under sequence parallelism both are slices of the sequence).

        `position_ids` int64 [b, s], `document_ids` int32 [b, s] or None and `samples` int64 [b] are whole on every
        rank. Where earlier positions are kept, `past` attends in place of `core`.
        """
        entered_BSE = enter_model_parallel(x_BSE, self.dense.place)
        together = None if self.joined is None else self.joined(entered_BSE)
        if self.joined is None or together is None:
            outputs = project_all(self, self._projections, entered_BSE)
        else:
            outputs = list(together.split_with_sizes(self.joined.sizes, dim=-1))
        q_BSHD, k_BSKD, v_BSKD = (output.unflatten(-1, (-1, self.head_dim)) for output in outputs)
        if self._limit is not None:
            q_BSHD, k_BSKD, v_BSKD = (x.clamp(-self._limit, self._limit) for x in (q_BSHD, k_BSKD, v_BSKD))
        if self._norm is not None:
            q_BSHD, k_BSKD = self._norm(q_BSHD, k_BSKD)
        if self.rotary is not None:
            made_anew = self._uncompiled_core is not None
            angles_of = self.rotary.new_angles if made_anew else self.rotary.angles
            angles = angles_of(position_ids, q_BSHD.dtype)
            if together is not None and self._limit is None and self._norm is None:  # still adjacent
                heads = [q_BSHD.shape[2], k_BSKD.shape[2]]
                q_and_k = together.unflatten(-1, (-1, self.head_dim))[:, :, : sum(heads)]
                q_BSHD, k_BSKD = self.rotary(q_and_k, angles).split_with_sizes(heads, dim=2)
            else:
                q_BSHD, k_BSKD = self.rotary(q_BSHD, angles), self.rotary(k_BSKD, angles)
        if past is None:
            masked = document_ids is not None or not isinstance(self.core, ScaledDotProduct) or self.core.masks.window
            core = self._uncompiled_core if masked and self._uncompiled_core is not None else self.core
            out_BSHD = core(q_BSHD, k_BSKD, v_BSKD, document_ids, samples)
        else:
            out_BSHD = past(self, q_BSHD, k_BSKD, v_BSKD)
        return self.dense(out_BSHD.flatten(2))  # type: ignore[no-any-return]  # nn.Module.__call__ is Any


def attention_projections(
    in_features: int,
    heads: Mapping[str, Heads],
    *,
    place: Place,
    bias: bool = True,
    initializer: Initializer | None = None,
    fused: bool = False,
) -> dict[str, ColumnParallelLinear]:
    """Return the layers that project activations to the queries, keys and values of `heads`; one layer if `fused`.

    Both forms have the same initial values and checkpoints. `LayoutError` if `fused` and ranks share some heads.
    """
    if fused:
        layers = {FUSED: ColumnParallelLinear(in_features, heads, place=place, bias=bias, initializer=initializer)}
    else:
        layers = {
            name: ColumnParallelLinear(in_features, of, place=place, bias=bias, initializer=initializer)
            for name, of in heads.items()
        }
    if len(set(heads.values())) == 1:
        _tell_former_place(layers, heads)
    return layers


def _tell_former_place(layers: Mapping[str, ColumnParallelLinear], heads: Mapping[str, Heads]) -> None:
    """Record where the first version of the checkpoint format has queries, keys and values of equally many heads.

    They were one tensor there, grouped by head: the rows of a head's query, then of its key, then of its value.
    """
    for layer in layers.values():
        for parameter in layer.parameters():
            description = meta(parameter)
            pieces = []
            for piece in description.pieces:
                name = piece.label or next(name for name, other in layers.items() if other is layer)
                size, number = heads[name].size, list(heads).index(name)
                shape = (len(heads) * piece.shape[0], *piece.shape[1:])
                former = Former(shape=shape, block=size, stride=len(heads) * size, offset=number * size)
                pieces.append(replace(piece, former=former, former_label=FUSED))
            update_meta(parameter, pieces=tuple(pieces))
