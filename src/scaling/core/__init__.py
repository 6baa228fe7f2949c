"""The model-agnostic engine: the public names of its packages, loaded when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.core.lazy import load_on_use as load_on_use

if TYPE_CHECKING:
    from scaling.core.boxes import Box as Box
    from scaling.core.boxes import GlobalTensor as GlobalTensor
    from scaling.core.boxes import whole as whole
    from scaling.core.checkpoint import *
    from scaling.core.config import *
    from scaling.core.data import *
    from scaling.core.errors import CheckpointError as CheckpointError
    from scaling.core.errors import ConfigError as ConfigError
    from scaling.core.errors import DataError as DataError
    from scaling.core.errors import DataRefusedError as DataRefusedError
    from scaling.core.errors import ExitStatus as ExitStatus
    from scaling.core.errors import HangError as HangError
    from scaling.core.errors import LayoutError as LayoutError
    from scaling.core.errors import Problem as Problem
    from scaling.core.errors import ScalingError as ScalingError
    from scaling.core.errors import ScheduleError as ScheduleError
    from scaling.core.errors import StorageError as StorageError
    from scaling.core.finetuning import *
    from scaling.core.logging import *
    from scaling.core.nn import *
    from scaling.core.nn.linear import linear as linear  # in scaling.core.nn, that is the module
    from scaling.core.optimizer import *
    from scaling.core.pipeline import *
    from scaling.core.profiler import *
    from scaling.core.report import *
    from scaling.core.runner import *
    from scaling.core.statistics import *
    from scaling.core.storage import *
    from scaling.core.topology import *
    from scaling.core.trainer import *
    from scaling.core.training import *
    from scaling.core.verify import *

load_on_use(__name__)
