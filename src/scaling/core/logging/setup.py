"""Set up the log: one format, a prefix for the rank, a file for each rank, colour on a terminal only."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from scaling.core.errors import ConfigError, StorageError
from scaling.core.logging.config import LoggerConfig
from scaling.core.logging.live_line import is_terminal
from scaling.core.logging.packages import missing_logger_packages

logger = logging.getLogger("scaling")
"""The library's logger, for a program that has none of its own. `configure_logging` says where its lines go."""
LOGGERS = (logger.name, "__main__")
"""The loggers set up by name: this library, and the program that is run with `python -m` or as a script."""
_FORMAT = "[%(asctime)s] [%(levelname)s] [%(rank)s] %(message)s"
_COLOURS: Mapping[int, str] = {
    logging.DEBUG: "\x1b[2m",
    logging.WARNING: "\x1b[33m",
    logging.ERROR: "\x1b[31m",
    logging.CRITICAL: "\x1b[1;31m",
}


def configure_logging(config: LoggerConfig, *, rank: int = 0, world_size: int = 1) -> None:
    """Send log messages to the terminal and to `<log_dir>/rank_<rank>.log`. A further call replaces the one before.

    Rank 0 shows all messages from `log_level` on; the other ranks show warnings and worse, and write the rest to their
    files. This holds for this library, and for the program and its packages. Of other installed packages and Python's
    own modules, only warnings and worse are logged. If the program has given the root logger a handler for the
    terminal, that handler shows the program's lines. A warning that is repeated word for word is logged once, and at
    the end with its count.

    Raises:
        ConfigError: A package that a sink of this rank's metrics needs is not installed.
    """
    if missing := list(missing_logger_packages(config, rank)):
        raise ConfigError(missing)
    close_logging()
    level = config.log_level.value.upper()
    prefix = f"rank {rank}" if world_size > 1 else "run"
    console = _ConsoleHandler()
    console.setLevel(level if rank == 0 else max(logging.WARNING, logging.getLevelName(level)))
    console.setFormatter(_ConsoleFormatter(prefix, rank=rank))
    handlers: list[logging.Handler] = [console]
    if config.log_dir is not None:
        file = _RankFileHandler(config.log_dir / f"rank_{rank}.log")
        file.setFormatter(_Formatter(prefix))
        handlers.append(file)
    for handler in handlers:
        handler.addFilter(_is_told)
        handler.addFilter(_SaidOnce())
    for name in LOGGERS:
        named = logging.getLogger(name)
        for handler in handlers:
            named.addHandler(handler)
        named.setLevel(level)
        named.propagate = False
    root, shows_itself = logging.getLogger(), any(map(_is_for_the_terminal, logging.getLogger().handlers))
    for handler in handlers:
        if not (shows_itself and handler is console):
            root.addHandler(handler)
    if not shows_itself:
        root.setLevel(level)


def log_to_file(message: str) -> None:
    """Log an error to this rank's file only: for an error that the terminal shows by other means, or not at all."""
    record = logging.LogRecord(logger.name, logging.ERROR, __file__, 0, message, None, None)
    for handler in logger.handlers:
        if isinstance(handler, _RankFileHandler):
            handler.handle(record)


def close_logging() -> None:
    """Undo `configure_logging`: close its files and restore Python's default logging."""
    for name in LOGGERS:
        named = logging.getLogger(name)
        _remove_handlers(named)
        named.setLevel(logging.NOTSET)
        named.propagate = True
    root = logging.getLogger()
    if any(isinstance(handler, _ConsoleHandler) for handler in root.handlers):
        root.setLevel(logging.WARNING)
    _remove_handlers(root)


def _remove_handlers(named: logging.Logger) -> None:
    for handler in list(named.handlers):
        if isinstance(handler, _ConsoleHandler | _RankFileHandler):
            named.removeHandler(handler)
            handler.close()


_INSTALLED = tuple(
    os.path.join(path, "")
    for path in {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)


def _is_told(record: logging.LogRecord) -> bool:
    """Return whether a record is from this library or the running program, or is a warning or worse."""
    if record.levelno >= logging.WARNING or record.name.partition(".")[0] in (*LOGGERS, _program_package()):
        return True
    return not os.path.abspath(record.pathname).startswith(_INSTALLED)


def _program_package() -> str | None:
    """Return the package of the module that is run with `python -m`, which may be an installed one."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return None if spec is None else str(spec.name).partition(".")[0]


def _is_for_the_terminal(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stderr, sys.stdout)


class _SaidOnce(logging.Filter):
    """Filter that lets each warning pass once."""

    def __init__(self) -> None:
        super().__init__()
        self._count: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        text = record.getMessage()
        self._count[text] = self._count.get(text, 0) + 1
        return self._count[text] == 1

    def take_repeated(self) -> dict[str, int]:
        """Return the count of each warning that came more than once, and reset all counts."""
        repeated = {text: count for text, count in self._count.items() if count > 1}
        self._count.clear()
        return repeated


def _tell_repeated(handler: logging.Handler) -> None:
    for repeats in handler.filters:
        if isinstance(repeats, _SaidOnce) and handler.level <= logging.WARNING:
            for text, count in repeats.take_repeated().items():
                message = f"{count} times in all: {text}"
                handler.handle(logging.LogRecord(logger.name, logging.WARNING, __file__, 0, message, None, None))


class _Formatter(logging.Formatter):
    """Formatter that writes date, level and rank before each message."""

    def __init__(self, prefix: str) -> None:
        super().__init__(_FORMAT, datefmt="%Y-%m-%d %H:%M:%S", defaults={"rank": prefix})


class _ConsoleFormatter(_Formatter):
    """Formatter that is shorter, and coloured, on a terminal: there the day is known, and rank 0 is the default."""

    def __init__(self, prefix: str, *, rank: int) -> None:
        super().__init__(prefix)
        self._short = logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S")
        self._long = logging.Formatter(
            "%(asctime)s [%(levelname)s]" + (f" [{prefix}]" if rank > 0 else "") + " %(message)s", datefmt="%H:%M:%S"
        )

    def format(self, record: logging.LogRecord) -> str:
        if sys.stderr is None or not sys.stderr.isatty():
            return super().format(record)
        colour = _COLOURS.get(record.levelno) if _may_be_coloured(sys.stderr) else None
        formatter = self._short if record.levelno == logging.INFO else self._long
        text = formatter.format(record)
        return text if colour is None else f"{colour}{text}\x1b[0m"


def _may_be_coloured(stream: TextIO) -> bool:
    return is_terminal(stream) and not os.environ.get("NO_COLOR")  # https://no-color.org


class _ConsoleHandler(logging.Handler):
    """Handler that writes to the current `sys.stderr`, which a live progress line may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        _tell_repeated(self)
        super().close()


class _RankFileHandler(logging.FileHandler):
    """Handler that appends to a rank's file. If the disk fills up later, the log ends, not the run."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            super().__init__(path, mode="a", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise StorageError(
                f"the log {path} cannot be written ({error}); set logger.log_dir to another folder"
            ) from error

    def close(self) -> None:
        _tell_repeated(self)
        with contextlib.suppress(OSError):  # lines that did not fit on a full disk are lost
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exc_info()[1], OSError):
            self.setLevel(logging.CRITICAL + 1)
            logger.warning("%s cannot be written any more: %s", self.baseFilename, sys.exc_info()[1])
        else:
            super().handleError(record)
