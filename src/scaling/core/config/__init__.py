"""Typed configuration: sections, overrides, templates and the checks behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.core.lazy import load_on_use

if TYPE_CHECKING:
    from scaling.core.config.base import BaseConfig as BaseConfig
    from scaling.core.config.base import run_checks as run_checks
    from scaling.core.config.config_file import read_config as read_config
    from scaling.core.config.family import ConfigFamily as ConfigFamily
    from scaling.core.config.fields import ConfigWarning as ConfigWarning
    from scaling.core.config.fields import Derived as Derived
    from scaling.core.config.fields import NoEffect as NoEffect
    from scaling.core.config.fields import OnResume as OnResume
    from scaling.core.config.fields import Unavailable as Unavailable
    from scaling.core.config.patterns import NAME_PATTERN as NAME_PATTERN
    from scaling.core.config.patterns import pattern_problems as pattern_problems
    from scaling.core.config.plain_words import first_of as first_of
    from scaling.core.config.plain_words import nearest as nearest
    from scaling.core.config.reading import Reading as Reading
    from scaling.core.config.template_text import template as template

load_on_use(__name__)
