"""Statistics of tensors on a GPU: those of the CPU, without a wait until they are read."""

from __future__ import annotations

import pytest
import torch

from scaling.core.statistics.config import Statistic
from scaling.core.statistics.order import QUANTILES
from scaling.core.statistics.recorder import TensorStatisticsRecorder
from scaling.core.statistics.sums import FORMULAS
from scaling.core.topology.topology import Topology
from tests.gpu.waiting import without_waiting
from tests.reference.worlds import random

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

NAMES = ("parameters/layers.0.weight", "activation_gradients/layers.1")


def recorder(device: str, statistics: tuple[Statistic, ...]) -> TensorStatisticsRecorder:
    return TensorStatisticsRecorder(dict.fromkeys(NAMES, statistics), Topology.single(device))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_gpu_records_what_a_cpu_does(dtype: torch.dtype) -> None:
    found = []
    for device in ("cpu", "cuda"):
        one = recorder(device, (*FORMULAS, *QUANTILES))
        for seed, name in enumerate(NAMES):
            for part in (3, 5):
                one.record(name, random(part, 700, seed=seed + part, dtype=dtype).to(device))
        found.append(one.merged(torch.tensor(0.25, dtype=torch.float64, device=device)).cpu())
    torch.testing.assert_close(found[1], found[0], rtol=1e-11, atol=1e-12)


def test_recording_and_merging_wait_for_nothing() -> None:
    one = recorder("cuda", tuple(FORMULAS))
    part = torch.randn(64, 4096, device="cuda", dtype=torch.bfloat16)
    factor = torch.tensor(0.5, dtype=torch.float64, device="cuda")
    one.record(NAMES[0], part)  # what is done once, the first time
    one.merged(factor)
    with without_waiting():
        for name in NAMES:
            one.record(name, part)
        numbers = one.merged(factor)
    assert numbers.isfinite().all()
