"""Typed configuration: sections, overrides, templates and the checks behind them."""

from scaling.core.config.base import BaseConfig as BaseConfig
