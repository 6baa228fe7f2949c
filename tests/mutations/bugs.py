"""Bugs that public training runs and libraries have had, each as an edit of this library's source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.contract.layouts import SMALL_BUCKETS, SP, LayoutCase
from tests.contract.models import MODELS
from tests.mutations.mutate import Edit

# Few and small: together they have every axis, and every bug shows in one of them.
TENSOR = LayoutCase(1, 1, 2, 24)
SEQUENCE = LayoutCase(1, 1, 2, 12, SP)
SHARED_HEADS = LayoutCase(1, 1, 4, 24)
DATA = LayoutCase(1, 2, 1, 4)
SHARDED = LayoutCase(1, 2, 1, 6, {}, SMALL_BUCKETS)
PIPE = LayoutCase(2, 1, 1, 6)
LAYOUTS = (TENSOR, SEQUENCE, SHARED_HEADS, DATA, SHARDED, PIPE)


@dataclass(frozen=True)
class Bug:
    """What goes wrong, in which function, and a layout in which it shows."""

    name: str
    target: str
    edits: Sequence[Edit]
    model: str
    layout: LayoutCase
    dropout: bool = False
    """Train with dropout."""

    @property
    def has_plain_program(self) -> bool:
        """Return whether a plain program computes the run. Otherwise a single process does, with the same bug."""
        return not self.dropout and self.model in MODELS


BUGS = (
    Bug(
        "gradients of norms are not summed under sequence parallelism",
        "scaling.core.nn.norm:_vector",
        [("gradient_in_parts=place.sequence_parallel", "gradient_in_parts=False")],
        "llama",
        SEQUENCE,
    ),
    Bug(
        "gradients of row-parallel biases are not summed under sequence parallelism",
        "scaling.core.nn.linear:RowParallelLinear.__init__",
        [("gradient_in_parts=place.sequence_parallel", "gradient_in_parts=False")],
        "gpt",
        SEQUENCE,
    ),
    Bug(
        "gradients of key-value heads that ranks share are not summed",
        "scaling.core.nn.linear:ColumnParallelLinear.__init__",
        [("any(shard.replicas > 1 for shard in shards.values())", "False")],
        "llama",
        SHARED_HEADS,
    ),
    Bug(
        "ranks hold the wrong key-value heads",
        "scaling.core.nn.shard:Heads.shard",
        [("offset=index // replicas * self.size", "offset=index % self.count * self.size")],
        "llama",
        SHARED_HEADS,
    ),
    Bug(
        "every shard is initialised with the same numbers",
        "scaling.core.nn.init:_fill",
        [("offset=piece.box.offset,", "offset=(0,) * len(piece.shape),")],
        "llama",
        TENSOR,
    ),
    Bug(
        "data-parallel copies begin with different weights",
        "scaling.core.pipeline.build:build_stages",
        [("fill(layer, seed=seed,", "fill(layer, seed=seed + topology.coordinate.data,")],
        "llama",
        DATA,
    ),
    Bug(
        "the gradient of the tied embedding is not summed over stages",
        "scaling.core.topology.placement:tied",
        [("gradient_in_parts=True", "gradient_in_parts=False")],
        "llama",
        PIPE,
    ),
    Bug(
        "the loss is a mean of the micro-batches' means",
        "scaling.transformer.losses:CrossEntropyLoss.__call__",
        [("LossOutput(loss, weight,", "LossOutput(loss / weight.clamp_min(1), weight.new_ones(()),")],
        "llama",
        DATA,
    ),
    Bug(
        "padding counts as tokens",
        "scaling.transformer.losses:CrossEntropyLoss.__call__",
        [("LossOutput(loss, weight,", "LossOutput(loss, float(targets.loss_weights.numel()),")],
        "llama",
        DATA,
    ),
    Bug(
        "the gradient norm counts replicas",
        "scaling.core.topology.placement:Placements.stands_for",
        [("if at.index(axis) != holders[chosen]:", "if axis is not Axis.MODEL and at.index(axis) != holders[chosen]:")],
        "llama",
        TENSOR,
    ),
    Bug(
        "the gradient norm leaves shards out",
        "scaling.core.optimizer.optimizer:Optimizer._placements",
        [("return placements.cut(cut)", "return placements")],
        "llama",
        SHARDED,
    ),
    Bug(
        "a row-parallel bias is added on every rank before the reduction",
        "scaling.core.nn.linear:RowParallelLinear.forward",
        [
            ("self._partial(x, None, edits)", "self._partial(x, self.bias, edits)"),
            ("y = y if self.bias is None else y + self.bias", "pass"),
        ],
        "gpt",
        TENSOR,
    ),
    Bug(
        "the gradient that enters a tensor-parallel block is not summed",
        "scaling.core.nn.place:enter_model_parallel",
        [("else copy_to_model(x, place.group)", "else x")],
        "llama",
        TENSOR,
    ),
    Bug(
        "the outputs of a fused projection are cut in another order than its weights",
        "scaling.core.nn.linear:project_all",
        [
            (
                "joined.split_with_sizes(layer.output_sizes, dim=-1)",
                "joined.split_with_sizes(layer.output_sizes, dim=-1)[::-1]",
            )
        ],
        "gpt",
        TENSOR,
    ),
    Bug(
        "positions in packed documents restart one token late",
        "scaling.transformer.data.boundaries:position_ids",
        [("running_BS * starts_BT[:, :-1]", "running_BS * np.roll(starts_BT, 1, axis=1)[:, :-1]")],
        "llama",
        DATA,
    ),
    Bug(
        "packed documents attend to each other",
        "scaling.core.nn.attention_masks:DocumentMasks._mask",
        [("return same.unsqueeze(1)", "return None")],
        "llama",
        DATA,
    ),
    Bug(
        "padding of the vocabulary takes part in the softmax",
        "scaling.core.nn.embedding:without_padding",
        [("values[: shard.length]", "values")],
        "llama",
        TENSOR,
    ),
    Bug(
        "the loss scale is applied twice",
        "scaling.core.pipeline.end:LossEnd.take",
        [("loss = found.loss_sum", "loss = found.loss_sum * self._scale")],
        "llama",
        PIPE,
    ),
    Bug(
        "gradients are clipped before they are unscaled",
        "scaling.core.optimizer.optimizer:Optimizer.step",
        [("(self.config.gradient_clipping / norm)", "(self.config.gradient_clipping / squared.sqrt())")],
        "llama",
        DATA,
    ),
    Bug(
        "gradients are averaged over data ranks on top of the mean over tokens",
        "scaling.core.optimizer.optimizer:Optimizer.step",
        [
            (
                "self._sync.finish()",
                "self._sync.finish()\n"
                "    for buffer in self._buffers: buffer.gradients.div_(self.topology.layout.data)",
            )
        ],
        "llama",
        DATA,
    ),
    Bug(
        "a bucket is reduced after the first micro-batch of several",
        "scaling.core.optimizer.grad_sync:GradientSync.__init__",
        [("self._expected[number] += contributions[parameter]", "self._expected[number] += 1")],
        "llama",
        SHARDED,
    ),
    Bug(
        "the last micro-batch is dropped",
        "scaling.core.pipeline.module:ParallelModule.__init__",
        [("self._lower(self.schedule, self.micro_batches)", "self._lower(self.schedule, self.micro_batches - 1)")],
        "llama",
        PIPE,
    ),
    Bug(
        "what a data rank has added up for the shards of others stays for the next step",
        "scaling.core.optimizer.optimizer:Optimizer.step",
        [("torch._foreach_zero_(self._of_others)", "pass")],
        "llama",
        SHARDED,
    ),
    Bug(
        "gradients of a step are not cleared",
        "scaling.core.optimizer.update:ChunkedUpdate.update",
        [("torch._foreach_zero_(chunk.summed)", "pass")],
        "llama",
        DATA,
    ),
    Bug(
        "gradients are clipped in the first chunk only",
        "scaling.core.optimizer.update:ChunkedUpdate.update",
        [("torch._foreach_mul_(chunk.scaled, factor)", "torch._foreach_mul_(self._chunks[0].scaled[:1], factor)")],
        "llama",
        SHARDED,
    ),
    Bug(
        "weight decay of one group is applied to all, biases and norms too",
        "scaling.core.optimizer.optimizer:Optimizer._update",
        [("group.decay_coefficient", "max(each.decay_coefficient for each in self.groups)")],
        "gpt",
        DATA,
    ),
    Bug(
        "an evaluation drops its tail",
        "scaling.core.data.sampler:evaluation_steps",
        [("-(-samples // geometry.global_batch_size)", "samples // geometry.global_batch_size")],
        "llama",
        DATA,
    ),
    Bug(
        "what fills up the last batch of an evaluation counts",
        "scaling.transformer.data.batch:TextCollator.collate",
        [(" * np.asarray(valid, np.float32)[:, None]", "")],
        "llama",
        DATA,
    ),
    Bug(
        "the updated slices of other data ranks are not gathered",
        "scaling.core.optimizer.grad_sync:GradientSync.gather_weights",
        [("enumerate(self._buffers)", "enumerate(self._buffers[:-1])")],
        "llama",
        SHARDED,
    ),
    Bug(
        "slices of a sequence have the same dropout mask",
        "scaling.core.nn.dropout:Dropout.forward",
        [("if cut else 0", "if False else 0")],
        "gpt",
        SEQUENCE,
        dropout=True,
    ),
    Bug(
        "dropout is keyed by the row of the micro-batch",
        "scaling.core.nn.dropout:Dropout._drop",
        [
            (
                "row_keys(self.site, samples.unsqueeze(1), positions)",
                "row_keys(self.site, torch.arange(len(samples)).unsqueeze(1), positions)",
            )
        ],
        "gpt",
        DATA,
        dropout=True,
    ),
    Bug(
        "the pieces of a fused weight lie one behind the other in the wrong order",
        "scaling.core.nn.parameter:fused_parameter",
        [("in parts.items():", "in reversed(parts.items()):")],
        "gpt",
        TENSOR,
    ),
    Bug(
        "a parameter that neighbouring ranks share is summed over the whole axis",
        "scaling.core.topology.placement:Placement.holders",
        [("copies = self.copies or size", "copies = size if self.gradient_in_parts else self.copies or size")],
        "llama",
        SHARED_HEADS,
    ),
    Bug(
        "what is shared by all ranks of an axis is taken for this rank's own",
        "scaling.core.topology.placement:Placements.within",
        [("if size == 1 or", "if size > 1 or")],
        "llama",
        SEQUENCE,
    ),
    Bug(
        "gradients in parts are summed along the axes that split the batch only",
        "scaling.core.topology.placement:Placements.other_sums",
        [("if axis not in done", "if False")],
        "llama",
        SEQUENCE,
    ),
    Bug(
        "ranks that share a parameter are taken to be the first of the axis",
        "scaling.core.topology.placement:Placement.holders",
        [("first = index // copies * copies", "first = 0")],
        "llama",
        SHARED_HEADS,
    ),
    Bug(
        "a head that ranks share counts once for each of them in a norm over all heads",
        "scaling.core.nn.key_query_norm:RMSNormOverHeads.term",
        [(" / self._holders", "")],
        "post",
        SHARED_HEADS,
    ),
    Bug(
        "a norm over all heads takes only the own rank's heads",
        "scaling.core.nn.key_query_norm:NormOverHeads.__call__",
        [("copy_to_model(reduce_from_model(terms, group), group)", "terms")],
        "post",
        TENSOR,
    ),
    Bug(
        "the gradient of the mean square over all heads stays on its rank",
        "scaling.core.nn.key_query_norm:NormOverHeads.__call__",
        [("copy_to_model(reduce_from_model(terms, group), group)", "reduce_from_model(terms, group)")],
        "post",
        TENSOR,
    ),
    Bug(
        "the first heads of each rank have the window",
        "scaling.core.nn.scores:Scores.of_heads",
        [("max(self.windowed_heads, heads.start)", "max(self.windowed_heads + heads.start, heads.start)")],
        "parallel",
        TENSOR,
        dropout=True,
    ),
    Bug(
        "each rank adds the positions of the first slice of the sequence",
        "scaling.core.nn.embedding:PositionEmbedding.forward",
        [("[self.place.index]", "[0]")],
        "after sum",
        SEQUENCE,
    ),
    Bug(
        "the gradients of learned positions are not summed under sequence parallelism",
        "scaling.core.nn.embedding:PositionEmbedding.__init__",
        [("gradient_in_parts=place.sequence_parallel", "gradient_in_parts=False")],
        "after sum",
        SEQUENCE,
    ),
    Bug(
        "sums of exponentials below different maxima are added",
        "scaling.core.nn.loss_sum:_Work.finish",
        [("(sum_Pn * (own_Pn - highest_n).exp_())", "sum_Pn")],
        "one norm",
        TENSOR,
    ),
    Bug(
        "logits in chunks lose the gradient of the head's scale",
        "scaling.core.nn.loss_sum:_Work.finish",
        [("(self._how.scale * self.lift)", "self.lift")],
        "gpt",
        TENSOR,
    ),
    Bug(
        "the gradient of a chunk of logits is made below this rank's own maximum",
        "scaling.core.nn.loss_sum:_Work.finish",
        [("(chunk.own_n - highest_n).exp_()", "1.0")],
        "one norm",
        TENSOR,
    ),
    Bug(
        "logits in chunks lose the gradient of the square of log Z",
        "scaling.core.nn.loss_sum:_Work.finish",
        [("(1.0 + 2.0 * self._z_loss * log_z_n)", "1.0")],
        "gpt",
        TENSOR,
    ),
    Bug(
        "scales of 8-bit numbers are found on each rank alone",
        "scaling.core.nn.float8:Float8Product.agreed",
        [("self.group is None or not cut", "True")],
        "float8",
        TENSOR,
    ),
    Bug(
        "scales of the inputs of row-parallel layers are taken for whole",
        "scaling.core.nn.float8:_Float8Linear.forward",
        [("(largest(x_NI, dim), product.inputs_cut)", "(largest(x_NI, dim), False)")],
        "float8",
        SEQUENCE,
    ),
)
