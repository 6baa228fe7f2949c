"""Binding to NUMA nodes: which cores a process gets, that all its threads get them, and where it is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from scaling.core.errors import ConfigError
from scaling.core.runner.numa import NODES, bind_to_numa_node, chosen, cores_of_nodes, node_of, numbers_in

TWO = {0: {0, 1, 4}, 1: {2, 3}}


def machine(folder: Path, *cores: str) -> Path:
    for number, listed in enumerate(cores):
        (folder / f"node{number}").mkdir(parents=True)
        (folder / f"node{number}" / "cpulist").write_text(f"{listed}\n")
    (folder / "nodes_of_another_name").mkdir()
    return folder


def test_lists_of_cores_are_read(tmp_path: Path) -> None:
    assert numbers_in("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
    assert cores_of_nodes(machine(tmp_path, "0-1,4", "2-3", "")) == TWO  # the third has memory and no cores
    assert set().union(*cores_of_nodes(NODES).values()) >= os.sched_getaffinity(0)


def test_processes_take_turns_or_go_where_their_gpu_is() -> None:
    everything = {0, 1, 2, 3, 4}
    assert [chosen(TWO, everything, local_rank=rank, near=None)[0] for rank in range(4)] == [0, 1, 0, 1]
    assert chosen(TWO, everything, local_rank=0, near=1) == (1, {2, 3})
    assert chosen(TWO, {1, 2, 4}, local_rank=0, near=None) == (0, {1, 4})
    assert chosen(TWO, {2}, local_rank=0, near=1) == (1, {2})


@pytest.mark.parametrize(
    ("nodes", "allowed", "near", "message"),
    [
        ({0: {0, 1}}, {0, 1}, None, "this machine has one NUMA node, so there is nothing to choose; set it to false"),
        ({0: {0, 1}}, {0, 1}, 0, "this machine has one NUMA node"),
        (TWO, {2, 3}, None, "lets this process use the cores of one NUMA node only"),
        (TWO, {0}, 1, r"GPU of process 0 \(counted from 0\) is at NUMA node 1, of whose cores this process may use"),
    ],
)
def test_where_there_is_nothing_to_choose_it_is_refused(
    nodes: dict[int, set[int]], allowed: set[int], near: int | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen(nodes, allowed, local_rank=0, near=near)


def test_the_node_of_a_gpu_is_that_of_its_pci_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "pci" / "0000:3b:00.0"
    device.mkdir(parents=True)
    for text, node in (("1\n", 1), ("0\n", 0)):
        (device / "numa_node").write_text(text)
        assert node_of(device) == node
    properties = SimpleNamespace(pci_domain_id=0, pci_bus_id=0x3B, pci_device_id=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    bound: dict[int, set[int]] = {}
    monkeypatch.setattr(os, "sched_setaffinity", bound.__setitem__)
    cores = sorted(os.sched_getaffinity(0))
    nodes = machine(tmp_path / "nodes", str(cores[0]), "100000")
    assert bind_to_numa_node(7, torch.device("cuda", 0), nodes=nodes, pci=tmp_path / "pci") == 0
    assert bound
    assert all(own == {cores[0]} for own in bound.values())
    (device / "numa_node").write_text("-1\n")
    with pytest.raises(ConfigError, match=r"does not say at which node the GPU 0000:3b:00\.0 is; set it to false"):
        node_of(device)


PROGRAM = """
import json, os, sys, threading
from pathlib import Path
import torch
from scaling.core import bind_to_numa_node
stay, go = threading.Event(), threading.Event()
def work():
    stay.set(); go.wait()
    found.append(sorted(os.sched_getaffinity(0)))
found = []
thread = threading.Thread(target=work); thread.start(); stay.wait()
node = bind_to_numa_node(int(sys.argv[1]), torch.device("cpu"), nodes=Path(sys.argv[2]))
go.set(); thread.join()
later = threading.Thread(target=work); later.start(); later.join()
print(json.dumps([node, sorted(os.sched_getaffinity(0)), *found]))
"""


def test_all_threads_of_a_process_stay_on_its_node(tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    half = max(1, len(cores) // 2)
    parts = [cores[:half], cores[half:] or cores]
    nodes = machine(tmp_path, *(",".join(map(str, part)) for part in parts))
    for rank in (0, 1):
        told = subprocess.check_output([sys.executable, "-c", PROGRAM, str(rank), str(nodes)], text=True)
        assert json.loads(told) == [rank, parts[rank], parts[rank], parts[rank]]
