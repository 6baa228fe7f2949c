"""Start a training: python3 -m examples.mlp_example.run CONFIG [KEY=VALUE ...]."""

from __future__ import annotations

import sys

from examples.mlp_example.config import MLPConfig
from scaling.core import run_process, runner_main


def main() -> int:
    path, *overrides = sys.argv[1:] or ["examples/mlp_example/config.yml"]
    config = MLPConfig.from_yaml(path, overrides)
    return runner_main(
        config.runner,
        module_or_script="examples.mlp_example.train",
        config_path=path,
        overrides=overrides,
        processes=config.topology.world_size,
        log_dir=config.logger.log_dir,
    )


if __name__ == "__main__":
    run_process(main)
