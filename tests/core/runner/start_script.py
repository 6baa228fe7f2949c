"""Start the runner as a user's command does: `PROCESSES CONFIG BEHAVIOUR...`; its status is the runner's."""

from __future__ import annotations

import sys
from pathlib import Path

from scaling.core.runner.config import RunnerConfig
from scaling.core.runner.main import runner_main

config = Path(sys.argv[2])
sys.exit(
    runner_main(
        RunnerConfig(),
        module_or_script=str(Path(__file__).with_name("worker_script.py")),
        config_path=config,
        overrides=sys.argv[3:],
        processes=int(sys.argv[1]),
        log_dir=config.parent / "log",
    )
)
