"""What the recorder of tensor statistics can get wrong where a model is cut, and what notices it."""

from __future__ import annotations

from tests.core.trainer import test_statistics
from tests.mutations.over_ranks import BugOverRanks

STATISTICS_BUGS = (
    BugOverRanks(
        "what model ranks hold alike is counted on each",
        "scaling.core.statistics.activations:ActivationWatch._counts",
        [("index == placement.holders(index, size)[0]", "True")],
        test_statistics.compare_with_one_process,
        8,
    ),
    BugOverRanks(
        "what is computed again is counted again",
        "scaling.core.statistics.activations:_in_backward_pass",
        [("torch._C._current_graph_task_id() != -1", "False")],
        test_statistics.compare_with_one_process,
        8,
    ),
    BugOverRanks(
        "weights that ranks hold alike, or tied, are counted on each",
        "scaling.core.trainer.statistics:StatisticsHook._record",
        [("if tensor.owned", "if tensor.parts")],
        test_statistics.compare_with_one_process,
        8,
    ),
    BugOverRanks(
        "gradients keep the scale of the backward pass",
        "scaling.core.statistics.recorder:TensorStatisticsRecorder.merged",
        [("gradient_factor.to(torch.float64), 1.0", "1.0, 1.0")],
        test_statistics.gradients_of_the_mean_loss,
        1,
    ),
    BugOverRanks(
        "the gradient of heads that ranks share is that of one rank's queries",
        "scaling.core.statistics.activations:ActivationWatch._take",
        [("part = ops.all_reduce(part.clone(), self._groups[output.placement.copies])", "pass")],
        test_statistics.compare_with_one_process,
        8,
    ),
)
