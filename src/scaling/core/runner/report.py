"""The report that a failing process leaves for its launcher, in the format of torch's elastic launcher."""

from __future__ import annotations

import errno
import json
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from scaling.core.errors import ExitStatus, ScalingError
from scaling.core.runner.remedies import remedy_of_error
from scaling.core.storage.writing import write_atomically

_STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Why one process failed, in its own words."""

    message: str
    trace: str = ""
    """The traceback; empty where the message alone is meant for the reader."""
    status: int = ExitStatus.FAILURE.value
    """The exit status of the process."""
    time: float = field(default_factory=time.time)
    """When it failed, in seconds since the epoch."""
    remedy: str = ""
    """What to try; empty where the message says it."""

    @classmethod
    def of(cls, error: BaseException) -> Report:
        """Describe an exception: by its message where it was raised on purpose or a disk is at fault, else in full."""
        if isinstance(error, ScalingError):
            return cls(message=str(error), status=error.exit_status.value)
        if isinstance(error, OSError) and error.errno in _STORAGE_ERRORS:
            return cls(message=str(error), status=ExitStatus.STORAGE.value)
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        return cls(message=f"{type(error).__name__}: {error}", trace=trace, remedy=remedy_of_error(error))

    def explain(self, who: str) -> str:
        """Return the message for a person: the traceback, if any, `who` failed and why, and last what to try."""
        text = f"{self.trace}error: {who}{self.message}"
        return f"{text}\ntry: {self.remedy}" if self.remedy else text

    def write(self, path: Path) -> None:
        """Write the error file atomically: a reader would take a half-written one for a crash."""
        extra = {
            "py_callstack": self.trace or self.message,
            "timestamp": str(int(self.time)),
            "time": self.time,
            "trace": self.trace,
            "status": self.status,
            "remedy": self.remedy,
        }
        content = json.dumps({"message": {"message": self.message, "extraInfo": extra}})
        write_atomically(path, content.encode(), durable=False)

    @classmethod
    def read(cls, path: Path) -> Report | None:
        """Read what `write`, or torch's own recorder, left at `path`; None where nothing was left."""
        try:
            message = json.loads(path.read_text(encoding="utf-8"))["message"]
            extra = message["extraInfo"]
            return cls(
                message=message["message"],
                trace=extra.get("trace", extra["py_callstack"]),
                status=extra.get("status", ExitStatus.FAILURE.value),
                time=float(extra.get("time", extra["timestamp"])),
                remedy=extra.get("remedy", ""),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
