"""The run as objects of Kubernetes, a ConfigMap and a JobSet, in one manifest. No cluster is contacted.

Each pod runs the node (`scaling.core.runner.node`), as other machines do; its order is mounted as a file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import yaml

from scaling.core.errors import ConfigError, ExitStatus, Problem
from scaling.core.runner.config import RunnerConfig, RunnerKubernetesConfig
from scaling.core.runner.environment import NODE_VARIABLE, forwarded
from scaling.core.runner.hosts import Host
from scaling.core.runner.plan import HostNeeds, LaunchPlan, Order, launch_plan
from scaling.core.storage.writing import storage_errors, write_atomically

FOLDER: Final = "/etc/scaling"
"""Where pods find the configuration and the order."""
CONFIG_MAP_BYTES: Final = 2**20
"""The most bytes that a ConfigMap can hold."""
MANIFEST: Final = "jobset.yaml"

_JOB: Final = "node"
_CONTAINER: Final = "train"
_CONFIG: Final = "config.yml"
_ORDER: Final = "order.json"
_INDEX_VARIABLE: Final = "JOB_COMPLETION_INDEX"
_INDEX_ANNOTATION: Final = "batch.kubernetes.io/job-completion-index"
_SHARED_MEMORY: Final = "/dev/shm"
_PATHS_OF_THIS_MACHINE: Final = (
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONEXECUTABLE",
    "PYTHONPYCACHEPREFIX",
    "PYTHONUSERBASE",
)

Object = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The objects that are applied to a cluster for one run."""

    run_id: str
    config_map: Object
    job_set: Object

    @property
    def pods(self) -> int:
        """Return the number of pods."""
        return int(self.job_set["spec"]["replicatedJobs"][0]["template"]["spec"]["completions"])

    def to_yaml(self) -> str:
        """Return both objects as documents of one stream."""
        return yaml.dump_all(
            [self.config_map, self.job_set], Dumper=_Dumper, sort_keys=False, width=2**20, explicit_start=True
        )


def write_manifest(
    config: RunnerConfig,
    program: Sequence[str],
    *,
    processes: int,
    config_path: Path | str,
    config_text: str,
    log_dir: Path | None,
    dry_run: bool,
) -> int:
    """Write the manifest of a run and say what to do with it; return the exit status. `dry_run`: only print it.

    The manifest is written to `log_dir`, or to the working directory where `log_dir` is None or below a volume, which
    is a path in the pods. `program` holds the arguments of Python: `-m`, a module and its arguments, or a script and
    its arguments.

    Raises:
        ConfigError: The run cannot be a JobSet. Nothing was written.
        StorageError: The manifest cannot be written.
    """
    settings = config.kubernetes
    made = manifest(
        config, program, processes=processes, config_path=config_path, config_text=config_text, environ=os.environ
    )
    in_volume = log_dir is not None and _is_in_volume(log_dir, settings)
    if log_dir is not None and not in_volume:
        sys.stderr.write(
            f"note: logger.log_dir: {str(log_dir)!r} is below no volume of runner.kubernetes.volumes, so what the run "
            "writes there is lost with its pods\n"
        )
    if dry_run:
        sys.stdout.write(made.to_yaml())
        return ExitStatus.DONE
    path = Path(MANIFEST) if log_dir is None or in_volume else log_dir / MANIFEST
    with storage_errors(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, made.to_yaml().encode())
    sys.stdout.write(_what_next(path, settings, made.pods))
    return ExitStatus.DONE


def manifest(
    config: RunnerConfig,
    program: Sequence[str],
    *,
    processes: int,
    config_path: Path | str,
    config_text: str,
    environ: Mapping[str, str],
) -> Manifest:
    """Return the objects of a run: the same for the same arguments. Pure, except that it reads ~/.deepspeed_env.

    Raises:
        ConfigError: The run cannot be a JobSet. Carries all problems.
    """
    per_pod = min(processes, config.default_gpu_count)
    variables = forwarded(environ, config.forward_environment)
    problems = [*_problems(config, processes, per_pod), *_unnamed_secrets(config.kubernetes, variables.secrets)]
    if problems:
        raise ConfigError(problems)
    plain = {
        name: value
        for name, value in variables.plain.items()
        if name not in config.kubernetes.secrets
        and (name not in _PATHS_OF_THIS_MACHINE or name in config.forward_environment)
    }
    plan = _plan(config, program, processes, per_pod, str(config_path))
    name = config.kubernetes.name
    draft = _objects(config.kubernetes, plan, config_text, plain, max_restarts=config.max_restarts)
    digest = hashlib.sha256(json.dumps([draft.config_map, draft.job_set], sort_keys=True).encode()).hexdigest()
    plan = dataclasses.replace(plan, run_id=f"{name}-{digest[:10]}")
    made = _objects(config.kubernetes, plan, config_text, plain, max_restarts=config.max_restarts)
    size = sum(len(text.encode()) for text in made.config_map["data"].values())
    if size > CONFIG_MAP_BYTES:
        raise ConfigError(
            Problem(
                "runner.kubernetes",
                f"the configuration and the plan of {made.pods} pods take {size} bytes, and a ConfigMap holds "
                f"{CONFIG_MAP_BYTES}; shorten the configuration {config_path}",
            )
        )
    return made


def _plan(config: RunnerConfig, program: Sequence[str], processes: int, per_pod: int, config_path: str) -> LaunchPlan:
    """Return the plan as pods see it: machines are pods, and the configuration is where it is mounted."""
    settings = config.kubernetes
    place = 2 if program[0] == "-m" else 1
    assert program[place] == config_path
    mounted = f"{FOLDER}/{_CONFIG}"
    pods = [Host(f"{settings.name}-{_JOB}-0-{index}", per_pod) for index in range(processes // per_pod)]
    plan = launch_plan(
        config,
        pods,
        [*program[:place], mounted, *program[place + 1 :]],
        run_id=settings.name,
        processes=processes,
        config_path=mounted,
        needs=HostNeeds(),
        environ={},
        interpreter=settings.python,
    )
    # The JobSet's headless service gives pods their names, the same after every restart.
    return dataclasses.replace(
        plan,
        master_addr=config.master_addr or f"{pods[0].name}.{settings.name}",
        directory="",  # that of the image
        environment={},  # the container has it from its start
        secrets=(),
    )


def _objects(
    settings: RunnerKubernetesConfig,
    plan: LaunchPlan,
    config_text: str,
    environment: Mapping[str, str],
    *,
    max_restarts: int,
) -> Manifest:
    labels = {"app.kubernetes.io/name": "scaling", "app.kubernetes.io/instance": settings.name}
    where = {} if settings.namespace is None else {"namespace": settings.namespace}
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": plan.run_id, **where, "labels": labels},
        "immutable": True,  # a restarted pod finds the same content
        "data": {_CONFIG: config_text, _ORDER: Order(plan=plan).to_json() + "\n"},
    }
    job = {
        "completionMode": "Indexed",
        "completions": len(plan.hosts),
        "parallelism": len(plan.hosts),
        "backoffLimit": 0,  # the whole JobSet is restarted
        "podFailurePolicy": {"rules": [_on_status(65, 2), _on_status(75), _ON_DISRUPTION]},
        "template": {"metadata": {"labels": labels}, "spec": _pod(settings, plan, environment)},
    }
    job_set = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": settings.name, **where, "labels": labels},
        "spec": {
            "network": {
                "enableDNSHostnames": True,
                "subdomain": settings.name,
                "publishNotReadyAddresses": True,
            },
            "failurePolicy": {"maxRestarts": max_restarts, "rules": _RESTART_RULES},
            "replicatedJobs": [{"name": _JOB, "replicas": 1, "template": {"spec": job}}],
        },
    }
    return Manifest(run_id=plan.run_id, config_map=config_map, job_set=job_set)


def _on_status(*statuses: int) -> Object:
    return {
        "action": "FailJob",
        "onExitCodes": {"containerName": _CONTAINER, "operator": "In", "values": sorted(statuses)},
    }


_ON_DISRUPTION: Final = {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}

# All three rules fail the Job for the same reason, PodFailurePolicy; only the message says which rule it was. Unlimited
# restarts need a message that is recognised, so that a message in other words ends the run. A status that matches no
# rule (1, 70, 74, 128 + n) restarts the JobSet, up to maxRestarts times.
_RESTART_RULES: Final = [
    {
        "name": "leave",
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": ["PodFailurePolicy"],
        "onJobFailureMessagePatterns": ["exit code 75 matching", "condition DisruptionTarget matching"],
    },
    {"name": "refuse", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
]


def _pod(settings: RunnerKubernetesConfig, plan: LaunchPlan, environment: Mapping[str, str]) -> Object:
    claims = list(dict.fromkeys(claim for claim, _ in settings.volumes))
    limits = {"cpu": settings.cpu, "memory": settings.memory}
    if settings.gpu_resource is not None:
        limits[settings.gpu_resource] = str(plan.hosts[0].processes)
    limits = {name: amount for name, amount in limits.items() if amount is not None}
    container = {
        "name": _CONTAINER,
        "image": settings.image,
        "command": [plan.interpreter, "-u", "-m", "scaling.core.runner.node"],
        "args": [
            "run",
            *("--index", f"$({_INDEX_VARIABLE})"),
            *("--run", plan.run_id),
            *("--order", f"{FOLDER}/{_ORDER}"),
            "--no-lifeline",
        ],
        "env": _environment(settings, plan.run_id, environment),
        **({"resources": {"limits": limits}} if limits else {}),
        "volumeMounts": [
            {"name": "scaling", "mountPath": FOLDER, "readOnly": True},
            {"name": "shared-memory", "mountPath": _SHARED_MEMORY},
            *({"name": f"claim-{claims.index(claim)}", "mountPath": path} for claim, path in settings.volumes),
        ],
    }
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": settings.grace_seconds,
        "shareProcessNamespace": True,  # as process 1 the node would miss a signal that comes before it listens
        "enableServiceLinks": False,  # names of services stay out of the environment
        "automountServiceAccountToken": False,
        **({"nodeSelector": settings.node_selector} if settings.node_selector else {}),
        "containers": [container],
        "volumes": [
            {"name": "scaling", "configMap": {"name": plan.run_id}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
            *(
                {"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}}
                for number, claim in enumerate(claims)
            ),
        ],
    }


def _environment(settings: RunnerKubernetesConfig, run_id: str, environment: Mapping[str, str]) -> list[Object]:
    """Return the variables of a container. Kubernetes replaces $(NAME) in values, and $$ by $."""
    index = {"fieldRef": {"fieldPath": f"metadata.annotations['{_INDEX_ANNOTATION}']"}}
    variables: list[Object] = [
        {"name": _INDEX_VARIABLE, "valueFrom": index},
        {"name": NODE_VARIABLE, "value": f"{run_id}/$({_INDEX_VARIABLE})"},
    ]
    variables += [{"name": name, "value": value.replace("$", "$$")} for name, value in sorted(environment.items())]
    for name, source in sorted(settings.secrets.items()):
        secret, _, key = source.partition("/")
        variables.append({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    return variables


def _problems(config: RunnerConfig, processes: int, per_pod: int) -> list[Problem]:
    """Return the problems that keep a run from being a JobSet."""
    problems = [
        Problem(f"runner.{name}", "names machines, but Kubernetes chooses them; remove it")
        for name in ("hosts", "hostsfile")
        if getattr(config, name) is not None
    ]
    if processes % per_pod:
        problems.append(
            Problem(
                "runner.default_gpu_count",
                f"is {per_pod} processes in each pod, which does not divide topology.world_size ({processes}); set it "
                f"to {max(number for number in range(1, per_pod) if processes % number == 0)}",
            )
        )
    paths = [str(PurePosixPath(path)) for _, path in config.kubernetes.volumes]
    for index, path in enumerate(paths):
        if path in (FOLDER, _SHARED_MEMORY, *paths[:index]):
            problems.append(
                Problem(f"runner.kubernetes.volumes.{index}", f"mounts at {path}, which is taken; choose another path")
            )
    return problems


def _unnamed_secrets(settings: RunnerKubernetesConfig, secrets: Mapping[str, str]) -> list[Problem]:
    """Return a problem for every secret variable that would be passed on, but comes from no Secret."""
    problems = []
    for name in sorted(set(secrets) - set(settings.secrets)):
        secret = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        problems.append(
            Problem(
                "runner.kubernetes.secrets",
                f"lacks {name}, which runner.forward_environment passes on and which is never written to a manifest; "
                f'make a Secret (printf %s "${name}" | kubectl create secret generic {secret} '
                f"--from-file=value=/dev/stdin) and add {{{name}: {secret}/value}}, or unset the variable",
            )
        )
    return problems


def _is_in_volume(path: Path, settings: RunnerKubernetesConfig) -> bool:
    return any(PurePosixPath(path).is_relative_to(mounted) for _, mounted in settings.volumes)


def _what_next(path: Path, settings: RunnerKubernetesConfig, pods: int) -> str:
    kubectl = "kubectl" if settings.namespace is None else f"kubectl -n {settings.namespace}"
    count = "1 pod" if pods == 1 else f"{pods} pods"
    selector = f"-l jobset.sigs.k8s.io/jobset-name={settings.name}"
    return (
        f"{path}: JobSet {settings.name}, {count}; nothing is started yet\n"
        f"  start   kubectl apply --server-side -f {path}\n"
        f"  state   {kubectl} get jobset {settings.name}\n"
        f"  follow  {kubectl} logs -f {selector} --prefix --tail=-1 --max-log-requests={pods}\n"
        f"  end     {kubectl} delete jobset {settings.name}"
        f"   (pods are asked to leave, and have {settings.grace_seconds} s to save)\n"
    )


class _Dumper(yaml.SafeDumper):
    """Dumper of YAML that readers of every version of the language, and people, understand in the same way."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return True: what appears twice is written twice."""
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    """Represent a text: several lines as a block, plain words as they are, anything else in quotes."""
    style: str | None = "|"
    if "\n" not in value:
        style = None if len(value) > 1 and re.fullmatch(r"[A-Za-z_][-A-Za-z0-9_./]*", value) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
