"""Keep more files open than a process may initially: a mixture of 1000 sources keeps thousands mapped or open.

Usually a process may open 1024 files, and may raise this limit many times over.
"""

from __future__ import annotations

import errno
import os
import resource
from contextlib import suppress
from typing import Final

_WANTED: Final = 1 << 16
"""Enough, where the system sets no limit at all."""


def make_room(descriptor: int) -> None:
    """Raise the limit of open files as far as this process may, once about half of the present limit is used.

    `descriptor` is any open one. Raising the limit early leaves room for other files that the process opens.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted and _lowest_free(descriptor) >= soft // 2:
        with suppress(OSError, ValueError):  # macOS has a lower limit than it reports
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _lowest_free(descriptor: int) -> int:
    """Return the descriptor of the next file, at most the limit; the system assigns the lowest one that is free."""
    try:
        copy = os.dup(descriptor)
    except OSError:
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    os.close(copy)
    return copy


def advice(error: OSError, usual: str) -> str:
    """Return what to do about a file that cannot be opened: advice on permissions or on open files, or else `usual`."""
    if isinstance(error, PermissionError):
        return "check the permissions"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "raise the number of files that a process may open (ulimit -Hn), or join small data sets"
    return usual
