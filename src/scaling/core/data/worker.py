"""Make worker processes end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.process import BaseProcess
from threading import Thread


def leave_with_parent() -> None:
    """End this worker process, from a thread, as soon as the process that started it is gone.

    The parent that the kernel knows is no help: it is the fork server, which stays for as long as it has a worker. If
    the process that started the worker were killed (out of memory, say), both would wait for each other for ever. Does
    nothing in a process that `multiprocessing` has not started.
    """
    if (parent := multiprocessing.parent_process()) is not None:
        Thread(target=_follow, args=(parent,), name="leave-with-parent", daemon=True).start()


def _follow(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
