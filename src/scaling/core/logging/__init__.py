"""The output of a run: log lines, metrics and their destinations, the state of the run and its provenance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.core.lazy import load_on_use

if TYPE_CHECKING:
    from scaling.core.logging.config import LoggerConfig as LoggerConfig
    from scaling.core.logging.config import LogLevel as LogLevel
    from scaling.core.logging.config import TensorboardRanksConfig as TensorboardRanksConfig
    from scaling.core.logging.metrics import MetricSink as MetricSink
    from scaling.core.logging.metrics_files import METRICS_FILE as METRICS_FILE
    from scaling.core.logging.metrics_files import names_metrics as names_metrics
    from scaling.core.logging.packages import missing_logger_packages as missing_logger_packages
    from scaling.core.logging.setup import configure_logging as configure_logging
    from scaling.core.logging.setup import logger as logger

load_on_use(__name__)
