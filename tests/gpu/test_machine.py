"""What a process is told on a machine with a GPU: streams of priority, allocation, the NUMA node of the GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from scaling.core.errors import ConfigError
from scaling.core.runner.numa import NODES, bind_to_numa_node, cores_of_nodes
from scaling.core.topology.topology import _options

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = torch.device("cuda", 0)

BIND = """
import os, torch
from scaling.core import bind_to_numa_node
node = bind_to_numa_node(0, torch.device("cuda", 0))
print(node, *sorted(os.sched_getaffinity(0)))
"""


def test_a_process_keeps_to_the_node_of_its_gpu_or_is_refused() -> None:
    nodes = cores_of_nodes(NODES)
    if len(nodes) < 2:
        with pytest.raises(ConfigError, match=r"one NUMA node|does not say at which node"):
            bind_to_numa_node(0, GPU)
        return
    told = subprocess.run([sys.executable, "-c", BIND], capture_output=True, text=True, check=False)
    if told.returncode:
        assert "does not say at which node" in told.stderr or "may use" in told.stderr
        return
    node, *cores = map(int, told.stdout.split())
    assert set(cores) == nodes[node] & os.sched_getaffinity(0)


def test_links_of_the_pipeline_have_streams_of_priority() -> None:
    assert _options(GPU, urgent=True).is_high_priority_stream
    assert _options(GPU, urgent=False) is None


def test_segments_that_grow_are_taken() -> None:
    program = "import torch; torch.ones(1, device='cuda'); print(torch.cuda.memory_snapshot()[0]['is_expandable'])"
    environment = {**os.environ, "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert told.stdout.strip() == "True"
    assert "deprecated" not in told.stderr
