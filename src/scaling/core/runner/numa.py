"""Bind a process to the cores of one NUMA node: that of its GPU; without GPUs, processes take the nodes in turn.

Memory is allocated on the node whose core touches it first, so a process that stays on one node has its memory there.
Linux only: /sys lists which cores a node has, and which node a PCI device is at.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, Final

import torch

from scaling.core.errors import ConfigError

NODES: Final = Path("/sys/devices/system/node")
PCI_DEVICES: Final = Path("/sys/bus/pci/devices")

_SETTING: Final = "runner.numa_binding is true, but"
_REMEDY: Final = "set it to false"


def bind_to_numa_node(local_rank: int, device: torch.device, *, nodes: Path = NODES, pci: Path = PCI_DEVICES) -> int:
    """Keep all threads of this process, and those it starts, on one node; return its number. Call it early.

    Raises `ConfigError` where the machine has one node, or does not say which node the GPU is at.
    """
    near = None
    if device.type == "cuda":
        properties: Any = torch.cuda.get_device_properties(device)
        place = f"{properties.pci_domain_id:04x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"
        near = node_of(pci / place)
    node, cores = chosen(cores_of_nodes(nodes), os.sched_getaffinity(0), local_rank=local_rank, near=near)
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), cores)
    return node


def chosen(
    nodes: Mapping[int, Set[int]], allowed: Set[int], *, local_rank: int, near: int | None
) -> tuple[int, Set[int]]:
    """Return a node and those of its cores that this process may use. Pure.

    `near` is the node of the process's GPU; without one, processes take the nodes in turn. Raises `ConfigError` as
    `bind_to_numa_node` does.
    """
    usable = {node: cores & allowed for node, cores in sorted(nodes.items()) if cores & allowed}
    if len(nodes) < 2 or (len(usable) < 2 and near is None):
        what = "has one NUMA node" if len(nodes) < 2 else "lets this process use the cores of one NUMA node only"
        raise ConfigError(f"{_SETTING} this machine {what}, so there is nothing to choose; {_REMEDY}")
    if near is None:
        near = list(usable)[local_rank % len(usable)]
    if near not in usable:
        raise ConfigError(
            f"{_SETTING} the GPU of process {local_rank} (counted from 0) is at NUMA node {near}, of whose cores this "
            f"process may use none; {_REMEDY}"
        )
    return near, usable[near]


def cores_of_nodes(folder: Path) -> dict[int, set[int]]:
    """Return the cores of each NUMA node; none where the system does not say."""
    found = {}
    for path in folder.glob("node[0-9]*/cpulist"):
        if cores := numbers_in(path.read_text(encoding="utf-8")):
            found[int(path.parent.name.removeprefix("node"))] = cores
    return found


def numbers_in(text: str) -> set[int]:
    """Return the numbers of a list such as `0-3,8,10-11`."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def node_of(device: Path) -> int:
    """Return the node of a PCI device; `ConfigError` where the system does not say."""
    try:
        node = int((device / "numa_node").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        node = -1
    if node < 0:
        raise ConfigError(f"{_SETTING} this machine does not say at which node the GPU {device.name} is; {_REMEDY}")
    return node
