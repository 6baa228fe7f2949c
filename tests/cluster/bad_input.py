"""What a user may get wrong about hosts: each a change of the hosts and of the settings, and what the message says."""

from __future__ import annotations

import encodings.utf_8
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.docker import IMAGE
from tests.cluster.runs import Cluster

Changes = Mapping[str, Any]


@dataclass(frozen=True)
class Scene:
    """Where a case is prepared: the hosts, and the folder of the run."""

    cluster: Cluster
    folder: Path

    def mounted(self, source: Path, target: Path) -> AbstractContextManager[None]:
        """Let the second host find something else in the place of a file or folder."""
        return self.cluster.hosts.mounted("h2", source, target)

    def copy(self, path: Path, name: str, edit: Callable[[str], str]) -> Path:
        """Write an edited copy of a text file beside the run."""
        copied, text = self.folder / name, path.read_text()
        copied.write_text(edit(text))
        assert copied.read_text() != text
        return copied


@dataclass(frozen=True)
class Case:
    """One thing that is wrong, while `prepare` lasts."""

    prepare: Callable[[Scene], AbstractContextManager[Changes]]
    message: tuple[str, ...]
    """Patterns that the message has, each in one line."""
    kind: str = "ssh"


@contextmanager
def no_such_host(scene: Scene) -> Iterator[Changes]:
    yield {"runner.hosts": ["h1 slots=1", "nowhere slots=1"]}


@contextmanager
def no_route(scene: Scene) -> Iterator[Changes]:
    scene.cluster.hosts.cut("h2")
    try:
        yield {}
    finally:
        scene.cluster.hosts.mend("h2")


@contextmanager
def no_sshd(scene: Scene) -> Iterator[Changes]:
    config = scene.folder / "ssh_config"
    config.write_text(f"Host h2\nPort 2222\nHost *\n{scene.cluster.hosts.ssh_config.read_text()}")
    yield {"runner.ssh_config": str(config)}


@contextmanager
def not_let_in(scene: Scene) -> Iterator[Changes]:
    config, hosts = scene.folder / "ssh_config", scene.cluster.hosts
    stranger = hosts.folder / "h1.key"  # a key, but none that opens
    config.write_text(f"Host h2\nIdentityFile {stranger}\nIdentityAgent none\nHost *\n{hosts.ssh_config.read_text()}")
    config.write_text(config.read_text().replace(f"IdentityFile {hosts.folder / 'user'}\n", ""))
    config.write_text(f"{config.read_text()}Host h1\nIdentityFile {hosts.folder / 'user'}\n")
    yield {"runner.ssh_config": str(config)}


@contextmanager
def another_host_key(scene: Scene) -> Iterator[Changes]:
    config, hosts = scene.folder / "ssh_config", scene.cluster.hosts
    known = scene.folder / "known_hosts"
    keys = {name: (hosts.folder / f"{name}.key.pub").read_text().split()[1] for name in hosts.names}
    known.write_text((hosts.folder / "known_hosts").read_text().replace(keys["h2"], keys["h1"]))
    config.write_text(hosts.ssh_config.read_text().replace(str(hosts.folder / "known_hosts"), str(known)))
    yield {"runner.ssh_config": str(config)}


@contextmanager
def no_interpreter(scene: Scene) -> Iterator[Changes]:
    empty = scene.folder / "empty"
    empty.mkdir()
    with scene.mounted(empty, Path(sys.executable).parent):
        yield {}


@contextmanager
def another_scaling(scene: Scene) -> Iterator[Changes]:
    with another_version(scene, "scaling"):
        yield {}


@contextmanager
def another_torch(scene: Scene) -> Iterator[Changes]:
    with another_version(scene, "torch"):
        yield {}


@contextmanager
def another_version(scene: Scene, package: str) -> Iterator[None]:
    """Let the second host find version 0.0.7 of a package installed."""
    folders = {path.resolve() for path in map(Path, ["src", *sys.path]) if path.is_dir()}
    patterns = (f"{package}-*.dist-info/METADATA", f"{package}.egg-info/PKG-INFO")
    files = [path for folder in folders for pattern in patterns for path in folder.glob(pattern)]
    assert files
    with ExitStack() as mounts:
        for number, path in enumerate(files):
            copy = scene.copy(
                path, f"{package}.{number}", lambda text: re.sub("(?m)^Version: .*", "Version: 0.0.7", text)
            )
            mounts.enter_context(scene.mounted(copy, path))
        yield


@contextmanager
def another_configuration(scene: Scene) -> Iterator[Changes]:
    path = scene.folder / "config.yml"
    path.touch()
    other = scene.folder / "other.yml"
    other.write_text("trainer:\n  train_iterations: 7\n")
    with scene.mounted(other, path):
        yield {}


@contextmanager
def another_corpus(scene: Scene) -> Iterator[Changes]:
    corpus = scene.cluster.corpus
    (path,) = corpus.parent.glob(f"{corpus.name}*.bin")
    other = scene.folder / "other.bin"
    other.write_bytes(path.read_bytes()[::-1])
    with scene.mounted(other, path):
        yield {}


@contextmanager
def no_corpus(scene: Scene) -> Iterator[Changes]:
    empty = scene.folder / "no_corpus"
    empty.mkdir()
    with scene.mounted(empty, scene.cluster.corpus.parent):
        yield {}


@contextmanager
def own_log_dir(scene: Scene) -> Iterator[Changes]:
    with own_folder(scene, "log"):
        yield {}


@contextmanager
def own_save_dir(scene: Scene) -> Iterator[Changes]:
    with own_folder(scene, "checkpoints"):
        yield {}


@contextmanager
def own_folder(scene: Scene, name: str) -> Iterator[None]:
    """Give the second host a folder of its own where the run's is."""
    (scene.folder / name).mkdir()
    (scene.folder / f"own_{name}").mkdir()
    with scene.mounted(scene.folder / f"own_{name}", scene.folder / name):
        yield


@contextmanager
def no_gpus(scene: Scene) -> Iterator[Changes]:
    yield {"topology.device": "cuda"}


@contextmanager
def port_taken(scene: Scene) -> Iterator[Changes]:
    code = "import socket, sys; s = socket.create_server(('', 29500)); print('up', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code]
    holder = scene.cluster.hosts.popen("h1", command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"up\n"
    try:
        yield {}
    finally:
        holder.communicate()


@contextmanager
def clock_behind(scene: Scene) -> Iterator[Changes]:
    # The kernel has one clock for all hosts, so it is the second one's Python that reads it wrongly.
    wrong = "\nimport time as _t\n_r, _n = _t.time, _t.time_ns\n_t.time = lambda: _r() - 60\n"
    wrong += "_t.time_ns = lambda: _n() - 60 * 10**9\n"
    path = Path(encodings.utf_8.__file__)  # which every Python reads when it starts
    with scene.mounted(scene.copy(path, "utf_8.py", lambda text: text + wrong), path):
        yield {}


@contextmanager
def two_names(scene: Scene) -> Iterator[Changes]:
    yield {"runner.hosts": ["h1 slots=1", f"{scene.cluster.hosts.address('h1')} slots=1"]}


@contextmanager
def too_many_slots(scene: Scene) -> Iterator[Changes]:
    yield {"runner.hosts": ["h1 slots=2", "h2 slots=1"]}


@contextmanager
def no_docker(scene: Scene) -> Iterator[Changes]:
    nothing = scene.folder / "docker.sock"
    nothing.touch()
    with scene.mounted(nothing, scene.cluster.hosts.folder / "docker" / "h2.sock"):
        yield {"runner.docker_config": {"docker_container": IMAGE}}


@contextmanager
def no_image(scene: Scene) -> Iterator[Changes]:
    yield {"runner.docker_config": {"docker_container": "scaling-of-tomorrow:7"}}


def line(text: str) -> Callable[[Scene], AbstractContextManager[Changes]]:
    """Return the preparation of a host line that is malformed."""

    @contextmanager
    def prepare(scene: Scene) -> Iterator[Changes]:
        yield {"runner.hosts": ["h1 slots=1", text]}

    return prepare


CASES: dict[str, Case] = {
    "no such host": Case(no_such_host, ("nowhere.*(unknown|not known|resolve)", "ssh .*nowhere")),
    "no route": Case(no_route, ("h2.*(route|answer|reach)", "ssh .*h2")),
    "no sshd": Case(no_sshd, ("h2.*refuse", "ssh .*h2")),
    "not let in": Case(not_let_in, ("h2.*keys", "ssh .*h2")),
    "another host key": Case(another_host_key, ("h2.*key", "ssh .*h2")),
    "no interpreter": Case(no_interpreter, (f"h2.*{re.escape(sys.executable)}",)),
    "another scaling": Case(another_scaling, (r"h2.*scaling.*0\.0\.7",)),
    "another torch": Case(another_torch, (r"h2.*torch.*0\.0\.7",)),
    "another configuration": Case(another_configuration, (r"h2.*config\.yml",), kind="pdsh"),
    "another corpus": Case(another_corpus, (r"h2.*\.bin",)),
    "no corpus": Case(no_corpus, ("h2.*data",)),
    "own log_dir": Case(own_log_dir, ("h2.*log_dir",)),
    "own save_dir": Case(own_save_dir, ("h2.*save_dir",)),
    "no GPUs": Case(no_gpus, ("(h1|h2).*GPU",)),
    "port taken": Case(port_taken, ("h1.*29500",)),
    "clock behind": Case(clock_behind, ("h2.*clock",)),
    "two names": Case(two_names, (r"h1.*10\.77\.0\.1|10\.77\.0\.1.*h1",)),
    "too many slots": Case(too_many_slots, (r"runner\.hosts.*3.*world_size.*2",)),
    "semicolon": Case(line("h2; touch owned"), (r"hosts\.1.*h2; touch owned",)),
    "substitution": Case(line("$(touch owned)"), (r"hosts\.1.*touch owned",)),
    "space": Case(line("h2 h3"), (r"hosts\.1.*h2 h3",)),
    "one GPU twice": Case(line("h2 slots=0,0"), (r"hosts\.1.*GPU 0 more than once",)),
    "no docker": Case(no_docker, ("h2.*[Dd]ocker",), kind="pdsh_docker"),
    "no image": Case(no_image, ("h2.*scaling-of-tomorrow:7",), kind="pdsh_docker"),
}

THREE: tuple[tuple[str, str, str], ...] = (
    ("own log_dir", "another corpus", "clock behind"),
    ("port taken", "another torch", "own save_dir"),
    ("no GPUs", "another scaling", "no corpus"),
)
"""Names of cases that are tried together. What the configuration alone shows is said before any host is asked."""
