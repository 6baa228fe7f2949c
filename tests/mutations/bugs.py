"""Bugs that public training runs and libraries have had, each as an edit of this library's source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.contract.layouts import SMALL_BUCKETS, SP, LayoutCase
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
    """Train with dropout. There is no plain program to compare with then, but the same bug in a single process."""


BUGS = (
    Bug(
        "gradients of norms are not summed under sequence parallelism",
        "scaling.core.nn.norm:RMSNorm.__init__",
        [("sum_grad_over_model=sequence_parallel", "sum_grad_over_model=False")],
        "llama",
        SEQUENCE,
    ),
    Bug(
        "gradients of row-parallel biases are not summed under sequence parallelism",
        "scaling.core.nn.linear:RowParallelLinear.__init__",
        [("sum_grad_over_model=sequence_parallel", "sum_grad_over_model=False")],
        "gpt",
        SEQUENCE,
    ),
    Bug(
        "gradients of key-value heads that ranks share are not summed",
        "scaling.core.nn.linear:ColumnParallelLinear.__init__",
        [("shared = shard.replicas > 1", "shared = False")],
        "llama",
        SHARED_HEADS,
    ),
    Bug(
        "ranks hold the wrong key-value heads",
        "scaling.core.nn.attention:kv_shard",
        [("offset=index // replicas * head_dim", "offset=index % kv_heads * head_dim")],
        "llama",
        SHARED_HEADS,
    ),
    Bug(
        "every shard is initialised with the same numbers",
        "scaling.core.nn.init:initialize",
        [("offset=offset,", "offset=(0,) * len(offset),")],
        "llama",
        TENSOR,
    ),
    Bug(
        "data-parallel copies begin with different weights",
        "scaling.core.pipeline.stage:build_stages",
        [("initialize(parameter, seed=seed)", "initialize(parameter, seed=seed + topology.coordinate.data)")],
        "llama",
        DATA,
    ),
    Bug(
        "the gradient of the tied embedding is not summed over stages",
        "scaling.core.optimizer.grad_sync:_extra_sums",
        [("(*over_replicas, *over_stages)", "over_replicas")],
        "llama",
        PIPE,
    ),
    Bug(
        "the loss is a mean of the micro-batches' means",
        "scaling.transformer.losses:CrossEntropyLoss.__call__",
        [
            (
                "LossOutput((losses * weights).sum(), weights.sum())",
                "LossOutput((losses * weights).sum() / weights.sum().clamp_min(1), weights.new_ones(()))",
            )
        ],
        "llama",
        DATA,
    ),
    Bug(
        "padding counts as tokens",
        "scaling.transformer.losses:CrossEntropyLoss.__call__",
        [("weights.sum())", "float(weights.numel()))")],
        "llama",
        DATA,
    ),
    Bug(
        "the gradient norm counts replicas",
        "scaling.core.optimizer.clip:counts_here",
        [("topology.index(Axis.MODEL) % kind.model_replicas == 0", "True")],
        "llama",
        TENSOR,
    ),
    Bug(
        "the gradient norm leaves shards out",
        "scaling.core.optimizer.clip:counts_here",
        [("(zero or topology.index(Axis.DATA) == 0)", "topology.index(Axis.DATA) == 0")],
        "llama",
        SHARDED,
    ),
    Bug(
        "a row-parallel bias is added on every rank before the reduction",
        "scaling.core.nn.linear:RowParallelLinear.forward",
        [
            ("linear(x, self.weight), self.topology", "linear(x, self.weight, self.bias), self.topology"),
            ("return y if self.bias is None else y + self.bias", "return y"),
        ],
        "gpt",
        TENSOR,
    ),
    Bug(
        "the gradient that enters a tensor-parallel block is not summed",
        "scaling.core.nn.linear:enter_model_parallel",
        [("else copy_to_model(x, group)", "else x")],
        "llama",
        TENSOR,
    ),
    Bug(
        "fused query, key and value are split as three blocks instead of by head",
        "scaling.core.nn.attention:ParallelSelfAttention._project",
        [
            ("(len(self.local_heads), 3, head_dim)", "(3, len(self.local_heads), head_dim)"),
            ("unbind(-2)", "unbind(-3)"),
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
        "scaling.core.nn.attention_kernels:DocumentMasks._mask",
        [("return (same.tril() if self.causal else same).unsqueeze(1)", "return None")],
        "llama",
        DATA,
    ),
    Bug(
        "padding of the vocabulary takes part in the softmax",
        "scaling.transformer.layers.head:_local_logits",
        [("table.weight[: table.shard.length]", "table.weight")],
        "llama",
        TENSOR,
    ),
    Bug(
        "the loss scale is applied twice",
        "scaling.core.pipeline.engine:_Step._backward",
        [("loss: Tensor = output.loss_sum", "loss: Tensor = output.loss_sum * self._scale")],
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
                "    for buffer in self._buffers: buffer.gradients.div_(self.topology.size(Axis.DATA))",
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
        "weight decay of one group is applied to all, biases and norms too",
        "scaling.core.optimizer.optimizer:Optimizer._build_adamw",
        [("self.groups[kind.group].decay_coefficient", "max(group.decay_coefficient for group in self.groups)")],
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
        [("loss_weights(starts_BT) * np.asarray(valid, np.float32)[:, None]", "loss_weights(starts_BT)")],
        "llama",
        DATA,
    ),
    Bug(
        "the updated slices of other data ranks are not gathered",
        "scaling.core.optimizer.grad_sync:GradientSync.gather_weights",
        [("for buffer in self._buffers:", "for buffer in self._buffers[:-1]:")],
        "llama",
        SHARDED,
    ),
    Bug(
        "slices of a sequence have the same dropout mask",
        "scaling.core.nn.dropout:Dropout.forward",
        [("if self.sequence_parallel else 0", "if False else 0")],
        "gpt",
        SEQUENCE,
        dropout=True,
    ),
    Bug(
        "dropout is keyed by the row of the micro-batch",
        "scaling.core.nn.dropout:Dropout.forward",
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
)
