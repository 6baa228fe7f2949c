"""Which pages have their commands run, how these are made small, and why the other commands are not run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

FIRST: Final = "python3 -m examples.transformer_example.run examples/transformer_example/config.yml"
"""Is run once, for all pages that begin with it."""


@dataclass(frozen=True)
class By:
    """A test that runs the command."""

    test: str
    """`path::function`."""


@dataclass(frozen=True)
class Page:
    """What becomes of the commands of a page. A command is named by a part of it that no other one of the page has."""

    run: bool = True
    """Whether the commands that are not named in `not_run` are run, one after the other."""
    not_run: Mapping[str, str | By] = field(default_factory=dict)
    """Commands that are not run, each with the reason or with the test that runs it. Several may share a part."""
    status: Mapping[str, int] = field(default_factory=dict)
    """Exit statuses of commands that do not end with 0."""
    added: Mapping[str, str] = field(default_factory=dict)
    """What is added to commands to make them short."""
    before: str = ""
    """What is done before, in bash: what the page takes for granted, beside what every page finds."""
    files: Mapping[str, int] = field(default_factory=dict)
    """Files that the page asks for, each with the number of the block of yaml that is its content."""


INSTALLED = "installing into a fresh environment is what .ci/run begins with"
NETWORK = "needs a network"
README = "is run for README.md"
SLURM = "needs Slurm; scripts of one's own are run by tests/core/runner/test_slurm.py"
KUBERNETES = "needs Kubernetes; tests/core/runner/test_kubernetes.py checks manifests against its schemas"
SERVER = "needs vLLM, which needs a GPU"
HOSTS = By("tests/cluster/test_tutorial.py::test_the_hosts_of_the_tutorial_reach_each_other_and_are_gone_afterwards")
BY_SSH = By("tests/cluster/test_layouts.py::test_a_run_over_hosts_is_that_of_one_machine")
KILLED = By("tests/cluster/test_failures.py::test_a_run_goes_on_after_one_of_its_hosts_was_killed")
DIGITS = By("tests/examples/test_mlp_example.py::test_the_command_learns_the_digits_alike_in_one_process_and_in_eight")
EIGHT = "eight processes take a minute to start; tests/contract/test_layouts.py trains in this layout"
PUBLISHED = By("tests/cli/test_import_published.py::test_a_published_model_is_imported_verified_and_generated_from")

TABLE: Final[Mapping[str, Page]] = {
    "README.md": Page(
        not_run={
            "python3 -m venv": INSTALLED,
            ". .venv/bin/activate": INSTALLED,
            "pip install": INSTALLED,
            "pytest": "is `make test`, with which .ci/run goes on",
        },
    ),
    "AGENTS.md": Page(
        not_run={
            "python3 -m venv": INSTALLED,
            "source .venv/bin/activate": INSTALLED,
            "pip install": INSTALLED,
            "make check": "is what .ci/run calls",
        },
    ),
    "CONTRIBUTING.md": Page(
        not_run={
            "python3 -m venv": INSTALLED,
            "source .venv/bin/activate": INSTALLED,
            "pip install": INSTALLED,
            "make check": "is what .ci/run calls",
        },
    ),
    "docs/coming_from.md": Page(
        not_run={
            "checkpoint import": PUBLISHED,
            "scaling generate runs/pharia": PUBLISHED,
        },
    ),
    "docs/data.md": Page(
        before="rm tokenizer.json",
        files={"web.yml": 0},
        added={
            "scaling train web.yml": "trainer.train_iterations=2 trainer.eval_interval=null "
            "topology.global_batch_size=2 transformer_architecture.hidden_size=32 transformer_architecture.num_layers=1"
        },
    ),
    "docs/finetuning.md": Page(
        before="rm -r runs/smollm2",
        not_run={"finetuning_example.run": README},
        added={"scaling train": "trainer.train_iterations=2 trainer.eval_interval=null"},
    ),
    "docs/finetuning_data.md": Page(files={"chat.yml": 0}),
    "docs/huggingface.md": Page(
        before="rm -r runs/smollm2", not_run={"pip install": INSTALLED, "hf download": NETWORK}
    ),
    "docs/index.md": Page(
        not_run={
            "python3 -m venv": INSTALLED,
            ". .venv/bin/activate": INSTALLED,
            "pip install": INSTALLED,
            "pytest": "is `make test`, with which .ci/run goes on",
        },
    ),
    "docs/inference.md": Page(
        not_run={
            "torchrun": "is the command above it, begun as torchrun begins a training, which is run for README.md",
            "data/code": By("tests/cli/test_evaluate.py::test_two_processes_say_the_same_once"),
            "--tasks": "needs a network; tests/transformer/evaluation/test_tasks.py has a task of its own",
            "pip install vllm": SERVER,
            "vllm serve": SERVER,
            "curl": SERVER,
        },
    ),
    "docs/kubernetes.md": Page(
        run=False,
        not_run={"scaling train config.yml": KUBERNETES, "kubectl apply": KUBERNETES, "kubectl create": KUBERNETES},
    ),
    "docs/launching.md": Page(run=False, not_run={"scontrol": SLURM}),
    "docs/models.md": Page(),
    "docs/parallelism/activation_checkpointing.md": Page(),
    "docs/parallelism/data.md": Page(),
    "docs/parallelism/index.md": Page(),
    "docs/parallelism/mixed.md": Page(not_run={"topology.pipe_parallel_size=2": EIGHT}),
    "docs/parallelism/pipeline.md": Page(),
    "docs/parallelism/sequence.md": Page(),
    "docs/parallelism/tensor.md": Page(),
    "docs/parallelism/zero.md": Page(),
    "docs/profiling.md": Page(),
    "docs/report.md": Page(
        before="cp -r runs/transformer_example runs/first && cp -r runs/transformer_example runs/second"
    ),
    "docs/resuming.md": Page(
        before="cp -r runs/transformer_example/checkpoints runs/a; cp -r runs/transformer_example/checkpoints runs/b; "
        "cp -r runs/transformer_example runs/mine; sed -i s,runs/transformer_example,runs/mine, runs/mine/config.yml",
        added={"scaling train": "trainer.train_iterations=9 trainer.eval_interval=null"},
    ),
    "examples/finetuning_example/README.md": Page(
        not_run={"finetuning_example.run": README},
    ),
    "examples/inference_example/README.md": Page(not_run={"inference_example.run": README}),
    "examples/mlp_example/README.md": Page(
        not_run={"topology.pipe_parallel_size=2": DIGITS, "data.download=true": NETWORK},
        added={"config.yml": "trainer.train_iterations=4"},
    ),
    "examples/transformer_example/README.md": Page(),
    "examples/tutorials/debugging.md": Page(
        status={"broken_layers": 1, "SCALING_FAULT": 70, "1.0e+20": 65},
        added={"SCALING_FAULT": "topology.process_group_timeout_seconds=5"},
    ),
    "examples/tutorials/finetuning.md": Page(
        added={"scaling train": "trainer.train_iterations=2 trainer.eval_interval=null"}
    ),
    "examples/tutorials/inference.md": Page(not_run={"inference_example.run": README}),
    "examples/tutorials/multi_node_training.md": Page(
        run=False,
        not_run={
            "apt-get": NETWORK,
            "two_hosts.sh up": HOSTS,
            "beta hostname": HOSTS,
            "two_hosts.sh down": HOSTS,
            "runner.max_restarts=1": KILLED,
            "ip netns pids": KILLED,
            "runner.runner_type=ssh": BY_SSH,
            "runs/one/checkpoints": BY_SSH,
            "equal to the last bit": BY_SSH,
            "torchrun": By("tests/cluster/test_layouts.py::test_torchrun_by_hand"),
        },
    ),
    "examples/tutorials/your_own_model.md": Page(
        status={"model.inner=255": 2},
    ),
}

VOCABULARY: Final = 320
SMALL: Final[Mapping[str, Mapping[str, str]]] = {
    "examples/transformer_example/config.yml": {
        "vocab_size: 4096": f"vocab_size: {VOCABULARY}",
        "hidden_size: 256": "hidden_size: 32",
        "num_layers: 4": "num_layers: 2",
        "sequence_length: 256": "sequence_length: 32",
        "validation_fraction: 0.01": "validation_fraction: 0.1",
        "train_iterations: 200": "train_iterations: 8",
        "eval_interval: 100": "eval_interval: 8\n  eval_iterations: 1",
        "save_interval: 100": "save_interval: 4",
    },
    "examples/finetuning_example/config.yml": {"train_iterations: 120": "train_iterations: 2"},
    "examples/tutorials/characters/config.yml": {
        "train_iterations: 600": "train_iterations: 40",
        "eval_interval: 200": "eval_interval: 20",
        "eval_iterations: 20": "eval_iterations: 1",
        "save_interval: 200": "save_interval: 20",
    },
}
"""What is written otherwise in configurations of the scratch copy, so that its runs take seconds."""
