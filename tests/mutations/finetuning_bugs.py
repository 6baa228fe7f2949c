"""What methods of fine-tuning can forget where layers are cut, each as an edit of this library's source."""

from __future__ import annotations

from tests.contract.layouts import SP, LayoutCase
from tests.mutations.bugs import Bug

TENSOR = LayoutCase(1, 1, 2, 24)
SEQUENCE = LayoutCase(1, 1, 2, 24, SP)
SHARED_HEADS = LayoutCase(1, 1, 4, 24)
PIPE = LayoutCase(2, 1, 1, 6)

_OWN_CUT = "type(cut)(cut.out_features, cut.in_features, cut.rows, None, cut.span)"
"""The cut of a layer as if its output were no sum."""

FINETUNING_BUGS = (
    Bug(
        "gradients of A in column-parallel layers are not summed",
        "scaling.core.finetuning.cut:Cut.of_inputs",
        [("gradient_in_parts=self.columns is None", "gradient_in_parts=False")],
        "lora",
        TENSOR,
    ),
    Bug(
        "gradients of B in row-parallel layers are not summed",
        "scaling.core.finetuning.low_rank:LowRank.__init__",
        [("self.b = cut.of_outputs", f"self.b = {_OWN_CUT}.of_outputs")],
        "lora",
        TENSOR,
    ),
    Bug(
        "gradients of LoRA's biases in row-parallel layers are not summed",
        "scaling.core.finetuning.low_rank:LowRank.__init__",
        [("self.bias = cut.of_outputs", f"self.bias = {_OWN_CUT}.of_outputs")],
        "lora",
        TENSOR,
    ),
    Bug(
        "gradients of B of key-value heads that ranks share are not summed",
        "scaling.core.finetuning.cut:Cut.of_outputs",
        [("(self.rows is not None and self.rows.replicas > 1)", "False")],
        "lora",
        SHARED_HEADS,
    ),
    Bug(
        "gradients of A of the head are not summed",
        "scaling.core.finetuning.table:LowRankHead.__init__",
        [("gradient_in_parts=True", "gradient_in_parts=False")],
        "lora",
        TENSOR,
    ),
    Bug(
        "gradients of B of the embedding are not summed",
        "scaling.core.finetuning.table:LowRankEmbedding.__init__",
        [("gradient_in_parts=True", "gradient_in_parts=False")],
        "lora",
        TENSOR,
    ),
    Bug(
        "squares of rows that are cut are not summed for DoRA",
        "scaling.core.finetuning.low_rank:LowRank._norms",
        [("self.form.scale, self._group", "self.form.scale, None")],
        "dora",
        TENSOR,
    ),
    Bug(
        "gradients of DoRA's magnitudes in row-parallel layers are not summed",
        "scaling.core.finetuning.low_rank:LowRank.__init__",
        [("self.magnitude = cut.of_outputs", f"self.magnitude = {_OWN_CUT}.of_outputs")],
        "dora",
        TENSOR,
    ),
    Bug(
        "gradients of DoRA's B in row-parallel layers are not summed",
        "scaling.core.finetuning.low_rank:LowRank.__init__",
        [("self.b = cut.of_outputs", f"self.b = {_OWN_CUT}.of_outputs")],
        "dora",
        TENSOR,
    ),
    Bug(
        "DoRA's magnitudes start as the lengths of parts of rows",
        "scaling.core.finetuning.low_rank:_joined",
        [("group is None", "True")],
        "dora",
        TENSOR,
    ),
    Bug(
        "gradients of bottleneck adapters are not summed under sequence parallelism",
        "scaling.core.finetuning.bottleneck:Projection.__init__",
        [("gradient_in_parts=place.sequence_parallel", "gradient_in_parts=False")],
        "dora",
        SEQUENCE,
    ),
    Bug(
        "gradients of soft prompts are not summed under sequence parallelism",
        "scaling.core.finetuning.soft_prompt:SoftPrompt.__init__",
        [("gradient_in_parts=place.sequence_parallel", "gradient_in_parts=False")],
        "dora",
        SEQUENCE,
    ),
    Bug(
        "each rank looks for a soft prompt in the first slice of the sequence",
        "scaling.core.finetuning.soft_prompt:SoftPrompt.forward",
        [("[self.place.index]", "[0]")],
        "dora",
        SEQUENCE,
    ),
    Bug(
        "gradients of rows of tokens are not summed",
        "scaling.core.finetuning.table:TokenRows.__init__",
        [("gradient_in_parts=True", "gradient_in_parts=False")],
        "lora",
        TENSOR,
    ),
    Bug(
        "each rank knows only the rows of its own tokens at first",
        "scaling.core.finetuning.table:TokenRows.follow_base",
        [("ops.all_reduce(rows, self._table[0].place.group)", "rows")],
        "fused",
        TENSOR,
    ),
    Bug(
        "rows of tokens that embedding and head share are not summed over stages",
        "scaling.core.topology.placement:tied",
        [("gradient_in_parts=True", "gradient_in_parts=False")],
        "lora",
        PIPE,
    ),
    Bug(
        "rows of tokens that embedding and head share count twice in the gradient norm",
        "scaling.core.topology.placement:Placements.stands_for",
        [("if at.index(axis) != holders[chosen]:", "if axis is not Axis.PIPE and at.index(axis) != holders[chosen]:")],
        "lora",
        PIPE,
    ),
    Bug(
        "every rank adds the embedding's update for tokens of others",
        "scaling.core.finetuning.table:LowRankEmbedding.embedded",
        [("own if here is None else own * here.unsqueeze(-1)", "own")],
        "lora",
        TENSOR,
    ),
    Bug(
        "dropout of the input is keyed by the local feature",
        "scaling.transformer.layers.edits:_Editor._edit_linear",
        [
            (
                "range(linear.inputs.offset, linear.inputs.offset + linear.inputs.length)",
                "range(linear.inputs.length)",
            )
        ],
        "lora",
        TENSOR,
    ),
    Bug(
        "a row-parallel update is added behind the sum",
        "scaling.core.nn.linear:RowParallelLinear.forward",
        [
            (
                "y = leave_model_parallel(self._partial(x, None, edits), self.place)",
                "y = leave_model_parallel(self._partial(x, None, []), self.place)\n"
                "        for edit in edits: y = edit.within(y, x)",
            )
        ],
        "lora",
        TENSOR,
    ),
    Bug(
        "a new bias of a row-parallel layer is added by every rank",
        "scaling.core.finetuning.added_bias:AddedBias.within",
        [("self.bias / self._terms", "self.bias")],
        "dora",
        TENSOR,
    ),
    Bug(
        "LoRA's bias of a row-parallel layer is added by every rank",
        "scaling.core.finetuning.low_rank:LowRank._added",
        [("(scale / self._terms)", "scale")],
        "lora",
        TENSOR,
    ),
    Bug(
        "gradients of vectors behind row-parallel layers are not summed under sequence parallelism",
        "scaling.core.finetuning.scale:OutputScale.__init__",
        [("layer.place.sequence_parallel if", "False if")],
        "vectors",
        SEQUENCE,
    ),
    Bug(
        "gradients of vectors of key-value heads that ranks share are not summed",
        "scaling.core.finetuning.scale:OutputScale.__init__",
        [("cut.rows.replicas > 1", "False")],
        "shared",
        SHARED_HEADS,
    ),
    Bug(
        "gradients of vectors before column-parallel layers are not summed",
        "scaling.core.finetuning.scale:InputScale.__init__",
        [("gradient_in_parts=cut.columns is None", "gradient_in_parts=False")],
        "vectors",
        TENSOR,
    ),
    Bug(
        "what is added to a part of a fused weight is cut as if the weight were whole",
        "scaling.core.finetuning.cut:Cut.of",
        [("sum(layer.output_sizes[", "sum([size for size, _ in layer.outputs.values()][")],
        "fused",
        TENSOR,
    ),
)
