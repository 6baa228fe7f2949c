"""What ways to run layers with less memory can get wrong, each as an edit of this library's source."""

from __future__ import annotations

from tests.contract.layouts import SELECTIVE, SP, ZERO, LayoutCase
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
        "a rank adds up another one's slice in shared memory",
        "scaling.core.collectives.exchanges:Exchanges._reduce_scatter",
        [("slots[0][self.rank], slots[1][self.rank]", "slots[0][0], slots[1][0]")],
        "llama",
        LayoutCase(1, 2, 1, 3, {}, ZERO),
    ),
    Bug(
        "ranks keep what they had of the others when they gather in shared memory",
        "scaling.core.collectives.exchanges:Exchanges._all_gather",
        [("parts[other].copy_(slots[other])", "pass")],
        "llama",
        LayoutCase(1, 2, 1, 3, {}, ZERO),
    ),
    Bug(
        "a sum in shared memory has this rank's part twice",
        "scaling.core.collectives.exchanges:Exchanges._all_reduce",
        [("join(slots[0], slots[1], out=part)", "join(slots[self.rank], slots[self.rank], out=part)")],
        "llama",
        LayoutCase(1, 1, 2, 12),
    ),
    Bug(
        "only the beginning of a long message is sent in shared memory",
        "scaling.core.collectives.mailboxes:_Sent.send",
        [("buffer.content[:size].copy_(message)", "buffer.content[: min(size, 4000)].copy_(message[:4000])")],
        "llama",
        LayoutCase(2, 1, 1, 3),
    ),
    Bug(
        "products that are kept are handed out changed",
        "scaling.core.nn.selective:SecondRun.__torch_dispatch__",
        [("_detached(result.value)", "_mapped(lambda kept: kept.detach() * 1.001, result.value)")],
        "llama",
        LayoutCase(1, 1, 1, 3, SELECTIVE),
    ),
)
