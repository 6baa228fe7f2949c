"""Settings that hold for every test: reproducible properties, a clean environment, no worker left behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.distributed import LAUNCHER_VARIABLES, close_workers

# No deadline: two busy cores make single examples slow. Derandomised: the same examples on every machine, every time.
settings.register_profile("scaling", deadline=None, derandomize=True, max_examples=50, database=None)
settings.load_profile("scaling")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide what a launcher around pytest, or an armed fault, may have left in the environment."""
    for name in (*LAUNCHER_VARIABLES, "SCALING_FAULT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="session")
def workers() -> Iterator[None]:
    """End the pool of worker processes with the session."""
    yield
    close_workers()
