"""What ways to run layers with less memory can get wrong, each as an edit of this library's source."""

from __future__ import annotations

from tests.contract.layouts import SELECTIVE, SP, LayoutCase
from tests.mutations.bugs import Bug

SPEED_BUGS = (
    Bug(
        "a sum over ranks that is kept instead of run again is lost",
        "scaling.core.nn.selective:SecondRun.__torch_dispatch__",
        [("tensor.copy_(value)", "tensor.zero_()")],
        "llama",
        LayoutCase(1, 1, 2, 12, {**SP, **SELECTIVE}),
    ),
    Bug(
        "products that are kept are handed out changed",
        "scaling.core.nn.selective:SecondRun.__torch_dispatch__",
        [("_detached(result.value)", "_mapped(lambda kept: kept.detach() * 1.001, result.value)")],
        "llama",
        LayoutCase(1, 1, 1, 3, SELECTIVE),
    ),
)
