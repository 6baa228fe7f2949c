"""What ssh, pdsh and docker say when they fail, and what the user reads."""

from __future__ import annotations

import pytest

from scaling.core.runner.config import RunnerDockerConfig
from scaling.core.runner.plan import HostPlan
from scaling.core.runner.transports.docker import PdshDocker
from scaling.core.runner.transports.failures import explain
from scaling.core.runner.transports.ssh import Ssh

HOST = HostPlan(name="h2", index=1, first_rank=2, processes=2)

CASES = {
    "ssh: Could not resolve hostname h2: Name or service not known": "its name is unknown",
    "ssh: connect to host h2 port 22: No route to host": "there is no route to it",
    "ssh: connect to host h2 port 22: Connection refused": "it refuses the connection",
    "ssh: connect to host h2 port 22: Connection timed out": "it did not answer in time",
    "Host key verification failed.": "its host key is not known",
    "Host key for h2 has changed and you have requested strict checking.": "its host key is not the one that is known",
    "me@h2: Permission denied (publickey,keyboard-interactive).": "accepts none of your keys (publickey,keyboard",
    "Timeout, server h2 not responding.": "the connection died: it has not answered for 15 s",
    "Connection to h2 closed by remote host.": "the connection broke",
    "bash: line 1: cd: /work: No such file or directory": "the working directory /work is not there",
    "bash: cd: /work dir: No such file or directory": "the working directory /work dir is not there",
    "bash: cd: /root: Permission denied": "the working directory /root may not be entered by your user",
    "Can't open user config file /nofile: No such file or directory": "ssh cannot read runner.ssh_config, /nofile",
    "bash: exec: docker: not found": "there is no docker",
    "bash: exec: sudo: not found": "there is no sudo",
    "docker: Cannot connect to the Docker daemon at unix:///nosock. Is the docker daemon running?": "does not run",
    'docker: Error response from daemon: exec: "python3": executable file not found in $PATH: unknown.': "no python3",
    "sh: 1: cd: can't cd to /work": "the working directory /work is not there",
    "bash: /opt/bin/python: No such file or directory": "its interpreter /opt/bin/python is not there",
    "sh: 1: exec: /opt/bin/python: not found": "its interpreter /opt/bin/python is not there",
    "env: '/opt/bin/python': No such file or directory": "its interpreter /opt/bin/python is not there",
    "env: \u2018/opt/bin/python\u2019: No such file or directory": "its interpreter /opt/bin/python is not there",
    "/usr/bin/python3: Error while finding module specification for 'scaling.core.runner.node' (ModuleNotFoundError: "
    "No module named 'scaling')": "its Python does not have this library (scaling)",
    "bash: docker: command not found": "there is no docker",
    "docker: Error response from daemon: No such image: image:1.": "the image is not there",
    "Unable to find image 'image:1' locally": "the image is not there",
    "docker: Cannot connect to the Docker daemon at unix:///sock. Is it running?.": "does not run",
    "docker: permission denied while trying to connect to the Docker daemon socket": "docker does not let you in",
    'docker: Error response from daemon: could not select device driver "" with [[gpu]].': "no GPU runtime",
    "docker: Error response from daemon: Conflict.": "docker refuses: Conflict.",
    "sudo: a password is required": "sudo asks for a password",
    "something nobody has seen": "something nobody has seen",
}


@pytest.mark.parametrize(("said", "words"), CASES.items(), ids=range(len(CASES)))
def test_a_failure_is_explained_with_the_command_to_try(said: str, words: str) -> None:
    text = explain(["Warning: Permanently added 'h2' to the list.", said], 255, host=HOST, transport=Ssh())
    assert words in text
    assert text.endswith("(try: ssh h2 true)")


def test_who_went_away_without_a_word_is_said_to_have() -> None:
    assert "without a word" in explain([], 255, host=HOST, transport=Ssh())
    assert "status 3 without a word" in explain([" "], 3, host=HOST, transport=Ssh())


def test_a_container_is_tried_by_hand_with_docker() -> None:
    transport = PdshDocker(RunnerDockerConfig(docker_container="image:1"))
    text = explain(["Unable to find image 'image:1' locally"], 125, host=HOST, transport=transport)
    assert text.endswith("(try: ssh h2 'docker run --rm --pull=never image:1 true')")
