"""Proof that two layouts are the same training run, or the name of the first parameter that differs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.core.lazy import load_on_use

if TYPE_CHECKING:
    from scaling.core.verify.layouts import single_process as single_process
    from scaling.core.verify.layouts import verify_layout as verify_layout
    from scaling.core.verify.report import Gap as Gap
    from scaling.core.verify.report import LayoutReport as LayoutReport
    from scaling.core.verify.report import Parting as Parting
    from scaling.core.verify.session import Session as Session

load_on_use(__name__)
