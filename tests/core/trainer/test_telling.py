"""What a run says of itself at its start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from scaling.core.topology.layout import Layout
from scaling.core.trainer.telling import described


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({}, "1,010 parameters, pipe 1 x data 1 x model 1 on cpu"),
        ({"data": 2, "model": 2}, "1,010 parameters on this rank, pipe 1 x data 2 x model 2 on cpu"),
        ({"context": 2}, "1,010 parameters on this rank, pipe 1 x data 1 x context 2 x model 1 on cpu"),
    ],
)
def test_parameters_layout_and_device_are_said(sizes: dict[str, int], said: str) -> None:
    layout = Layout(**{"pipe": 1, "data": 1, "model": 1, **sizes})
    topology = SimpleNamespace(layout=layout, size=layout.size, device="cpu")
    learner: Any = SimpleNamespace(topology=topology, module=nn.Linear(100, 10))
    assert described(learner) == said
