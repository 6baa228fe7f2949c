"""A worker's micro-batch in the form in which it is sent: packed where an error can still be reported."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any, final


@final
@dataclass(frozen=True)
class Packed:
    """The answer of a worker. Its tensors are in shared memory.

    PyTorch would pack it in a thread of the worker, which only prints an error and sends nothing: with a full /dev/shm,
    or without a free file descriptor, the training process would wait for ever.
    """

    content: bytes = b""
    problem: str = ""
    """Why it could not be packed; empty where it was."""

    @classmethod
    def of(cls, value: object) -> Packed:
        """Pack a value, in a worker."""
        try:
            return cls(bytes(ForkingPickler.dumps(value)))
        except Exception as error:  # whatever it is, the training process waits for an answer
            return cls(problem=f"it read a micro-batch that it cannot send: {error}")

    def unpack(self) -> Any:
        """Return the value, in the training process and only once; a `RuntimeError` where it could not be packed."""
        if self.problem:
            raise RuntimeError(self.problem)
        return pickle.loads(self.content)
