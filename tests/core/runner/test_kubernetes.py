"""The manifest of a run: valid objects, the right pods and ranks, nothing secret; and the recipes for other tools."""

from __future__ import annotations

import copy
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet, TrainerV1alpha1TrainJob

from scaling.core.errors import ConfigError, ExitStatus, StorageError
from scaling.core.runner.config import RunnerConfig
from scaling.core.runner.kubernetes import CONFIG_MAP_BYTES, Manifest, manifest, write_manifest
from scaling.core.runner.plan import Order

PAGE = Path(__file__).parents[3] / "docs/kubernetes.md"
PROGRAM = ("-m", "scaling.transformer.train", "my config.yml", "trainer.seed=1")
TEXT = "# mine\ntopology:   \n  world_size: '16'\n"
CANARY = "canary-5f1c"
FULL: dict[str, Any] = {
    "image": "registry.example/scaling:1",
    "name": "first",
    "namespace": "team",
    "cpu": "16",
    "memory": "64Gi",
    "volumes": [["training", "/data"], ["other", "/more"], ["training", "/again"]],
    "secrets": {"WANDB_API_KEY": "wandb/key"},
    "node_selector": {"gpu": "true"},
    "grace_seconds": 120,
}
ENVIRON = {
    "NCCL_DEBUG": "1e3",
    "NCCL_HOSTID": "$(HOME) $x",
    "WANDB_API_KEY": CANARY,
    "PYTHONPATH": "/home/me",
    "A": "b",
}


def runner(**changes: Any) -> RunnerConfig:
    kubernetes = {"image": "image", **changes.pop("kubernetes", {})}
    return RunnerConfig.from_dict({"runner_type": "kubernetes", "kubernetes": kubernetes, **changes})


def made(
    config: RunnerConfig, *, processes: int = 16, text: str = TEXT, environ: dict[str, str] | None = None
) -> Manifest:
    return manifest(
        config,
        PROGRAM,
        processes=processes,
        config_path="my config.yml",
        config_text=text,
        environ=ENVIRON if environ is None else environ,
    )


def full() -> Manifest:
    forwarded = ["NCCL_*", "PYTHON*", "WANDB_*"]
    return made(runner(kubernetes=FULL, max_restarts=3, forward_environment=forwarded))


def job(job_set: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = job_set["spec"]["replicatedJobs"][0]["template"]["spec"]
    return spec


def pod(job_set: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = job(job_set)["template"]["spec"]
    return spec


def require_valid(config_map: dict[str, Any], job_set: dict[str, Any]) -> None:
    """Raise where an object has a field that does not exist, lacks one, or has one of a wrong type."""
    parsed = JobsetV1alpha2JobSet.from_dict(copy.deepcopy(job_set))
    assert parsed is not None
    assert parsed.to_dict() == job_set
    template = job_set["spec"]["replicatedJobs"][0]["template"]
    metadata = {"name": "checked"}
    inner = {"apiVersion": "v1", "kind": "Pod", **template["spec"]["template"]}
    inner["metadata"] = {**metadata, **inner["metadata"]}
    batch = {"apiVersion": "batch/v1", "kind": "Job", **template, "metadata": metadata}
    for one in (config_map, batch, inner):
        kubernetes_validate.validate(one, "1.34", strict=True)


def keys(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every key that the schema knows: names that users choose are left out."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            if key not in ("data", "labels", "limits", "nodeSelector"):
                yield from keys(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from keys(inner, (*path, index))


@given(
    pods=st.integers(1, 40),
    per_pod=st.integers(1, 16),
    restarts=st.integers(0, 9),
    optional=st.sets(st.sampled_from(sorted(set(FULL) - {"image"}))),
    gpu=st.sampled_from([None, "nvidia.com/gpu", "amd.com/gpu"]),
)
@settings(deadline=None, max_examples=20)
def test_objects_are_valid_whatever_is_set(
    pods: int, per_pod: int, restarts: int, optional: set[str], gpu: str | None
) -> None:
    chosen = {name: FULL[name] for name in optional} | {"gpu_resource": gpu}
    config = runner(kubernetes=chosen, default_gpu_count=per_pod, max_restarts=restarts)
    result = made(config, processes=pods * per_pod, environ={})
    require_valid(result.config_map, result.job_set)
    assert list(yaml.safe_load_all(result.to_yaml())) == [result.config_map, result.job_set]
    assert job(result.job_set)["completions"] == job(result.job_set)["parallelism"] == result.pods == pods
    assert result.job_set["spec"]["failurePolicy"]["maxRestarts"] == restarts
    limits = pod(result.job_set)["containers"][0].get("resources", {}).get("limits", {})
    assert limits.get(gpu) == (None if gpu is None else str(per_pod))


PLACES = [(0, path) for path in keys(full().config_map)] + [(1, path) for path in keys(full().job_set)]


def test_a_misspelling_anywhere_is_noticed() -> None:
    unnoticed = []
    for which, path in PLACES:
        objects = [copy.deepcopy(full().config_map), copy.deepcopy(full().job_set)]
        place: Any = objects[which]
        for step in path[:-1]:
            place = place[step]
        place[f"{path[-1]}x"] = place.pop(path[-1])
        try:
            require_valid(*objects)
        except Exception:
            continue
        unnoticed.append(path)
    assert len(PLACES) > 100
    assert not unnoticed


@given(pods=st.integers(1, 40), per_pod=st.integers(1, 16))
@settings(deadline=None, max_examples=20)
def test_the_order_names_every_rank_once_in_the_order_of_the_pods(pods: int, per_pod: int) -> None:
    result = made(runner(default_gpu_count=per_pod, kubernetes={"name": "a"}), processes=pods * per_pod)
    order = Order.from_json(result.config_map["data"]["order.json"])
    assert [rank for host in order.plan.hosts for rank in host.ranks] == list(range(pods * per_pod))
    assert [host.name for host in order.plan.hosts] == [f"a-node-0-{index}" for index in range(pods)]
    assert order.plan.master_addr == "a-node-0-0.a"
    assert result.job_set["spec"]["network"]["subdomain"] == "a"
    assert order.plan.run_id == result.run_id


def test_pods_read_the_mounted_configuration_with_the_same_settings() -> None:
    result = full()
    order = Order.from_json(result.config_map["data"]["order.json"])
    assert order.plan.program == ("-m", "scaling.transformer.train", "/etc/scaling/config.yml", "trainer.seed=1")
    assert order.plan.directory == ""
    assert order.config_text is None
    assert result.config_map["data"]["config.yml"] == TEXT


def test_a_script_gets_the_mounted_configuration() -> None:
    result = manifest(runner(), ("run.py", "c.yml"), processes=1, config_path="c.yml", config_text="", environ={})
    order = Order.from_json(result.config_map["data"]["order.json"])
    assert order.plan.program == ("run.py", "/etc/scaling/config.yml")


def test_the_container_runs_the_node_by_the_number_of_its_pod() -> None:
    result = full()
    container = pod(result.job_set)["containers"][0]
    assert container["command"] == ["python3", "-u", "-m", "scaling.core.runner.node"]
    options = ["--run", result.run_id, "--order", "/etc/scaling/order.json", "--no-lifeline"]
    assert container["args"] == ["run", "--index", "$(JOB_COMPLETION_INDEX)", *options]
    assert [one["name"] for one in container["env"]][:2] == ["JOB_COMPLETION_INDEX", "SCALING_NODE"]
    assert pod(result.job_set)["terminationGracePeriodSeconds"] == 120


def test_only_disruptions_and_leaving_restart_without_being_counted() -> None:
    result = full().job_set
    rules = job(result)["podFailurePolicy"]["rules"]
    assert [rule.get("onExitCodes", {}).get("values") for rule in rules] == [[2, 65], [75], None]
    leave, refuse = result["spec"]["failurePolicy"]["rules"]

    def action(message: str) -> str:
        found = any(re.search(pattern, message) for pattern in leave["onJobFailureMessagePatterns"])
        return str(leave["action"] if found else refuse["action"])

    said = "Container train for pod team/first-node-0-1-abcde failed with exit code {} matching FailJob rule at index 0"
    assert [action(said.format(code)) for code in (2, 65, 75)] == [
        "FailJobSet",
        "FailJobSet",
        "RestartJobSetAndIgnoreMaxRestarts",
    ]
    lost = "Pod team/first-node-0-1-abcde has condition DisruptionTarget matching FailJob rule at index 2"
    assert action(lost) == "RestartJobSetAndIgnoreMaxRestarts"
    assert action("said in other words") == "FailJobSet"


def test_a_secret_is_named_and_never_written() -> None:
    text = full().to_yaml()
    assert CANARY not in text
    variables = {one["name"]: one for one in pod(full().job_set)["containers"][0]["env"]}
    assert variables["WANDB_API_KEY"]["valueFrom"] == {"secretKeyRef": {"name": "wandb", "key": "key"}}
    assert variables["NCCL_DEBUG"]["value"] == "1e3"
    assert variables["NCCL_HOSTID"]["value"] == "$$(HOME) $$x"  # Kubernetes makes one of two
    assert '"1e3"' in text
    assert "PYTHONPATH" not in variables
    assert "A" not in variables


def test_a_secret_without_a_secret_is_refused_without_its_value() -> None:
    with pytest.raises(
        ConfigError, match=r"kubectl create secret generic hf-token .*\{HF_TOKEN: hf-token/value\}"
    ) as caught:
        made(runner(forward_environment=["HF_*"]), environ={"HF_TOKEN": CANARY})
    assert CANARY not in str(caught.value)


def test_a_folder_of_this_machine_is_passed_on_where_it_is_named() -> None:
    result = made(runner(forward_environment=["PYTHONPATH"]))
    assert {"name": "PYTHONPATH", "value": "/home/me"} in pod(result.job_set)["containers"][0]["env"]


def test_all_that_is_wrong_is_said_at_once() -> None:
    config = runner(
        hosts=["a"], default_gpu_count=8, kubernetes={"volumes": [["a", "/dev/shm"], ["b", "/x"], ["c", "/x/"]]}
    )
    with pytest.raises(ConfigError) as caught:
        made(config, processes=12)
    found = {problem.path: problem.message for problem in caught.value.problems}
    volumes = ["runner.kubernetes.volumes.0", "runner.kubernetes.volumes.2"]
    assert list(found) == ["runner.hosts", "runner.default_gpu_count", *volumes]
    assert "8 processes" in found["runner.default_gpu_count"]
    assert "(12)" in found["runner.default_gpu_count"]
    assert found["runner.default_gpu_count"].endswith("set it to 6")
    assert caught.value.exit_status == ExitStatus.USER_INPUT


def test_what_a_config_map_cannot_hold_is_refused_with_both_numbers() -> None:
    fixed = len(made(runner()).config_map["data"]["order.json"])
    made(runner(), text="x" * (CONFIG_MAP_BYTES - fixed))
    with pytest.raises(
        ConfigError, match=f"take {CONFIG_MAP_BYTES + 1} bytes, and a ConfigMap holds {CONFIG_MAP_BYTES}"
    ):
        made(runner(), text="x" * (CONFIG_MAP_BYTES - fixed + 1))


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@settings(deadline=None, max_examples=50)
def test_every_configuration_comes_back_out_of_the_manifest(text: str) -> None:
    first = next(iter(yaml.safe_load_all(made(runner(), text=text).to_yaml())))
    assert first["data"]["config.yml"] == text


def test_the_name_of_the_run_follows_from_its_content() -> None:
    assert full().to_yaml() == full().to_yaml()
    assert full().run_id != made(runner(kubernetes=FULL)).run_id
    assert re.fullmatch(r"first-[0-9a-f]{10}", full().run_id)
    assert full().config_map["metadata"]["name"] == full().run_id


def write(config: RunnerConfig, log_dir: Path | None, *, dry_run: bool = False) -> int:
    return write_manifest(
        config,
        PROGRAM,
        processes=16,
        config_path="my config.yml",
        config_text=TEXT,
        log_dir=log_dir,
        dry_run=dry_run,
    )


def test_the_manifest_is_written_and_what_to_do_next_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write(runner(kubernetes={"name": "first", "namespace": "team"}), tmp_path / "logs") == ExitStatus.DONE
    path = tmp_path / "logs/jobset.yaml"
    assert [one["kind"] for one in yaml.safe_load_all(path.read_text())] == ["ConfigMap", "JobSet"]
    said = capsys.readouterr()
    assert f"kubectl apply --server-side -f {path}\n" in said.out
    for words in ("get jobset first", "logs -f -l jobset.sigs.k8s.io/jobset-name=first", "delete jobset first"):
        assert f"kubectl -n team {words}" in said.out
    assert "300 s" in said.out
    assert "below no volume" in said.err


def test_a_log_dir_in_a_volume_is_a_path_of_the_pods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    claim = tmp_path / "data"
    assert write(runner(kubernetes={"volumes": [["claim", str(claim)]]}), claim / "logs") == ExitStatus.DONE
    assert [path.name for path in tmp_path.iterdir()] == ["jobset.yaml"]
    assert capsys.readouterr().err == ""


def test_a_dry_run_prints_the_manifest_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert write(runner(), tmp_path / "logs", dry_run=True) == ExitStatus.DONE
    assert [one["kind"] for one in yaml.safe_load_all(capsys.readouterr().out)] == ["ConfigMap", "JobSet"]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"jobset\.yaml"):
        write(runner(), tmp_path / "file/logs")


def recipe(first_key: str) -> dict[str, Any]:
    """Return the object on the page for another tool, by a key that only it has."""
    blocks = re.findall(r"^```yml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    found = [values for values in map(yaml.safe_load, blocks) if first_key in values]
    assert len(found) == 1
    values: dict[str, Any] = found[0]
    return values


def started(command: str, folder: Path, environment: dict[str, str]) -> list[str]:
    """Return what torchrun is given by a shell command."""
    fake = folder / "torchrun"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    result = subprocess.run(
        ["bash", "-euc", command],
        env={"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.splitlines()


TRAINING = ["-m", "scaling.transformer.train", "/work/config.yml"]
MEETING = ["--nnodes=2", "--node-rank=1", "--nproc-per-node=8", "--master-addr=10.0.0.1", "--master-port=29500"]


def test_the_train_job_of_the_page_is_valid() -> None:
    values = recipe("apiVersion")
    parsed = TrainerV1alpha1TrainJob.from_dict(copy.deepcopy(values))
    assert parsed is not None
    assert parsed.to_dict() == values
    assert values["spec"]["trainer"]["command"] == ["torchrun", *TRAINING]
    planted = copy.deepcopy(values)
    planted["spec"]["trainer"]["numNode"] = planted["spec"]["trainer"].pop("numNodes")
    misread = TrainerV1alpha1TrainJob.from_dict(copy.deepcopy(planted))
    assert misread is None or misread.to_dict() != planted


def test_the_skypilot_task_of_the_page_starts_the_training(tmp_path: Path) -> None:
    values = recipe("run")
    environment = {
        "SKYPILOT_NUM_NODES": str(values["num_nodes"]),
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
    }
    assert started(values["run"], tmp_path, environment) == [*MEETING, *TRAINING]


def test_the_dstack_task_of_the_page_starts_the_training(tmp_path: Path) -> None:
    values = recipe("commands")
    environment = {
        "DSTACK_NODES_NUM": str(values["nodes"]),
        "DSTACK_NODE_RANK": "1",
        "DSTACK_MASTER_NODE_IP": "10.0.0.1",
        "DSTACK_GPUS_PER_NODE": "8",
    }
    assert started("\n".join(values["commands"]), tmp_path, environment) == [*MEETING, *TRAINING]
