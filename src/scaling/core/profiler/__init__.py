"""A timeline of what a process does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.core.lazy import load_on_use

if TYPE_CHECKING:
    from scaling.core.profiler.config import ProfilerConfig as ProfilerConfig
    from scaling.core.profiler.profiler import Profiler as Profiler

load_on_use(__name__)
