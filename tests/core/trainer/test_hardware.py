"""The peak rate of a GPU is that of the longest name known; of what is not known there is none."""

from __future__ import annotations

import pytest
import torch

from scaling.core.trainer.hardware import peak_flops


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA L40S", 362e12), ("Another", None)],
)
def test_the_longest_name_that_is_known_counts(name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda")) == peak
    assert peak_flops(torch.device("cpu")) is None
