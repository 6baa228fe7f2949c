"""Train a language model and show what it has learnt.

python3 -m examples.transformer_example.run examples/transformer_example/config.yml [KEY=VALUE ...]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from scaling.core import ConfigError, ExitStatus, ScalingError, run_process
from scaling.transformer import launch_training

PROGRAM = "examples.transformer_example.run"


def main() -> int:
    """Train through the runner; then, in this process, continue a few prompts with the model."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise ConfigError(f"name a configuration: python3 -m {PROGRAM} CONFIG [KEY=VALUE ...]")
    config_path, *overrides = sys.argv[1:]
    config, status = launch_training(Path(config_path), overrides)
    save_dir = config.trainer.save_dir
    if status != ExitStatus.DONE or save_dir is None or int(os.environ.get("RANK", "0")) != 0:
        return status
    from examples.transformer_example.show import show  # takes torch, which starting a training does not

    try:
        show(save_dir)
    except ScalingError as error:  # the training has ended well all the same
        print(f"\nThe model was trained and saved, but continues no text here: {error}")
    print(f"\nNext:\n{next_commands(config_path, save_dir)}")
    return ExitStatus.DONE


def next_commands(config_path: str, save_dir: Path) -> str:
    """Return what to try after the first training, a line for each command."""
    return f"""\
  scaling generate {save_dir} --prompt "class Queue:"
  scaling checkpoint ls {save_dir}
  scaling config template            # every setting, with its meaning
  python3 -m {PROGRAM} {config_path} \\
      topology.data_parallel_size=2 trainer.save_dir=runs/second/checkpoints logger.log_dir=runs/second"""


if __name__ == "__main__":
    run_process(main)
