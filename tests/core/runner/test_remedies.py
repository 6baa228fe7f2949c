"""What is tried after a failure depends on its kind."""

from __future__ import annotations

import signal

import pytest
import torch

from scaling.core.runner.remedies import remedy_of_error, remedy_of_signal


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "topology.micro_batch_size"),
        (RuntimeError("CUDA error: out of memory"), "topology.activation_checkpointing_type"),
        (MemoryError(), "topology.micro_batch_size"),
        (ModuleNotFoundError("No module named 'x'"), "install"),
        (ConnectionResetError("reset by peer"), "another rank"),
        (torch.distributed.DistNetworkError("closed"), "another rank"),
        (KeyError("x"), "traceback"),
    ],
)
def test_an_error_that_nobody_raised_on_purpose_has_a_remedy(error: BaseException, words: str) -> None:
    assert words in remedy_of_error(error)


def test_a_signal_has_a_remedy() -> None:
    assert "micro_batch_size" in remedy_of_signal(signal.SIGKILL)
    assert "library crashed" in remedy_of_signal(signal.SIGSEGV)
    assert "who sent" in remedy_of_signal(40)
