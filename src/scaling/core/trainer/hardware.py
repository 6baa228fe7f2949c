"""The limits of the hardware: peak rates of matrix products, for the share of them that training uses."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from typing import Final

import torch

_PEAK_TERAFLOPS: Final[Mapping[str, float]] = {
    # Dense half-precision tensor-core rates from the vendors' data sheets; the longest name found in the device's wins.
    "B200": 2250.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H800": 989.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A40": 150.0,
    "A10": 125.0,
    "V100": 125.0,
    "T4": 65.0,
    "MI300X": 1307.0,
    "MI250X": 383.0,
}


def peak_flops(device: torch.device) -> float | None:
    """Return the device's half-precision peak in operations per second; None for a CPU or an unknown GPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = [key for key in _PEAK_TERAFLOPS if key in name]
    return _PEAK_TERAFLOPS[max(known, key=len)] * 1e12 if known else None


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process so far, in bytes: on a GPU allocated by PyTorch, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
