"""Per-axis random streams: one shared along the model axis, and one private to this rank."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from scaling.core.topology.layout import Coordinate

Stream = Literal["replicated", "sharded"]


def derive_seed(seed: int, *names: object) -> int:
    """Return a 63-bit seed that is a pure function of `seed` and the names."""
    text = "\x1f".join(str(name) for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


class RngTracker:
    """Random streams for code that draws from torch's default generator (the fast dropout).

    `replicated` is the same on all ranks of the model axis, for tensors that they all hold; `sharded` differs, for
    tensors of which they hold shards. Both differ along the other axes. Layers that need the same numbers in every
    layout use keys instead of streams (`scaling.core.nn.dropout`).
    """

    def __init__(self, coordinate: Coordinate, device: torch.device) -> None:
        self._coordinate = coordinate
        self._device = device
        self._states: dict[str, Tensor] = {}
        self.seed(0)

    def seed(self, seed: int) -> None:
        """Restart both streams from `seed`."""
        at = self._coordinate
        place = ("pipe", at.pipe, "data", at.data, "context", at.context)
        for stream, names in {"replicated": place, "sharded": (*place, "model", at.model)}.items():
            generator = torch.Generator(device=self._device)
            generator.manual_seed(derive_seed(seed, stream, *names))
            self._states[stream] = generator.get_state()

    @contextlib.contextmanager
    def stream(self, name: Stream) -> Iterator[None]:
        """Draw from a stream inside the context: the default generator continues it, then gets its own state back."""
        outside = self._get()
        self._set(self._states[name])
        try:
            yield
        finally:
            self._states[name] = self._get()
            self._set(outside)

    def state(self) -> dict[str, Tensor]:
        """Return the state of all streams."""
        return dict(self._states)

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from a state returned by `state`."""
        self._states = dict(state)

    def replaying(self, state: dict[str, Tensor]) -> contextlib.AbstractContextManager[None]:
        """Replay from `state` inside the context, for recomputation; afterwards resume as if nothing had been drawn.

        The context may be entered again: a backward pass in two halves recomputes twice.
        """
        return _Replaying(self, state)

    def _get(self) -> Tensor:
        return torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else torch.get_rng_state()

    def _set(self, state: Tensor) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state, self._device)
        else:
            torch.set_rng_state(state)


class _Replaying(contextlib.AbstractContextManager[None]):
    def __init__(self, tracker: RngTracker, state: dict[str, Tensor]) -> None:
        self._tracker, self._state = tracker, state
        self._present = state

    def __enter__(self) -> None:
        self._present = self._tracker.state()
        self._tracker.restore(self._state)

    def __exit__(self, *error: object) -> None:
        self._tracker.restore(self._present)
