"""Stand-ins for the commands of Slurm, and for the Python of its tasks: what they do and where they note it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scaling.core.runner.config import RunnerConfig, RunnerType

PROGRAM = ("-m", "scaling.transformer.train", "config.yml", "trainer.seed=1")
TOOLS = {
    "sbatch": 'printf "%s\\0" "$@" > "$FAKE/sbatch"; env > "$FAKE/env"; [ -z "$FAKE_REFUSAL" ] || '
    '{ echo "sbatch: error: $FAKE_REFUSAL" >&2; exit 1; }; echo "4711${FAKE_CLUSTER}"',
    "scontrol": 'case "$1" in show) printf "%s\\n" $FAKE_HOSTS ;; *) echo "$@" >> "$FAKE/scontrol" ;; esac',
    "squeue": 'echo "${FAKE_STATE-RUNNING}"',
    # Runs the command of the tasks for each of FAKE_ENDS, and ends as srun does: with the greatest status.
    "srun": 'printf "%s\\0" "$@" > "$FAKE/srun"; env > "$FAKE/env"; greatest=0; $FAKE_BEFORE\n'
    'while [ "${1#--}" != "$1" ]; do shift; done\n'
    'for end in $FAKE_ENDS; do FAKE_END=$end "$@"; s=$?; [ $s -le $greatest ] || greatest=$s; done\nexit $greatest',
    "python": 'printf "%s\\0" "$@" > "$FAKE/python"\n'
    'case "$FAKE_END" in -*) kill "$FAKE_END" $$ ;; esac; exit $FAKE_END',
}
"""By name: what each of them runs in bash. `$FAKE` is the folder for notes."""


def config(**values: Any) -> RunnerConfig:
    return RunnerConfig(runner_type=RunnerType.SLURM, **values)


def noted(file: Path) -> list[str]:
    return file.read_text().split("\0")[:-1]


def environment_of(file: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in file.read_text().splitlines() if "=" in line)
