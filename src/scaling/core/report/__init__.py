"""A page about one or several runs, made from the files that they wrote, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.core.lazy import load_on_use

if TYPE_CHECKING:
    from scaling.core.report.page import report_page as report_page
    from scaling.core.report.reading import Run as Run
    from scaling.core.report.reading import read_run as read_run

load_on_use(__name__)
