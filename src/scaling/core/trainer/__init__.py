"""The training loop: resume, train, log, evaluate, save, leave when asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.core.lazy import load_on_use

if TYPE_CHECKING:
    from scaling.core.trainer.config import TrainerConfig as TrainerConfig
    from scaling.core.trainer.fitness import contents_problems as contents_problems
    from scaling.core.trainer.fitness import goes_on as goes_on
    from scaling.core.trainer.fitness import refused_return as refused_return
    from scaling.core.trainer.fitness import scalars_lacking as scalars_lacking
    from scaling.core.trainer.hooks import TrainerHook as TrainerHook
    from scaling.core.trainer.hooks import TrainerView as TrainerView
    from scaling.core.trainer.run import communicator as communicator
    from scaling.core.trainer.run import run_training as run_training
    from scaling.core.trainer.state import RunIdentity as RunIdentity
    from scaling.core.trainer.state import TrainState as TrainState
    from scaling.core.trainer.trainer import Trainer as Trainer

load_on_use(__name__)
