"""`scaling report`: one page about one or several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from scaling.cli.imported import imported
from scaling.core import ConfigError, StorageError, read_run, report_page
from scaling.core.storage.writing import write_atomically

_FILE: Final = "report.html"
_LANGUAGE_MODEL: Final = ("transformer_architecture", "scaling.transformer.config.root:TransformerConfig")
"""A section that only the configuration of a language model has, and the class of that configuration."""


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of runs (logger.log_dir).", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File for the page.", show_default=f"{_FILE} in the first RUN"),
    ] = None,
) -> None:
    """Write one HTML file about one run, or several to compare, and print its path.

    The file has curves, how the run ended, attempts, timeline, versions, hardware and configuration. It loads nothing
    from elsewhere, so it can be mailed. A run may continue meanwhile.
    """
    found = [read_run(folder) for folder in runs]
    section, home = _LANGUAGE_MODEL
    known = any(section in (run.config or {}) for run in found)
    page = report_page(found, config_class=imported(home) if known else None)
    path = output or runs[0] / _FILE
    if path.is_dir():
        raise ConfigError(f"--output {path} is a folder; name a file in it, such as {path / _FILE}")
    try:
        write_atomically(path, page.encode(), durable=False)
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror}); name another file with --output") from error
    typer.echo(str(path))
