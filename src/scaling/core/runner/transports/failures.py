"""The failures of the programs that reach other machines, explained in helpful words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from scaling.core.runner.plan import HostPlan
from scaling.core.runner.transports.client import Transport

_PATTERNS: Final[Sequence[tuple[str, str]]] = (
    # from the innermost to the outermost: what went wrong first is said last
    (
        r"No module named '?(?P<what>scaling[\w.]*)'?",
        "its Python does not have this library ({what}); install it there",
    ),
    (r"cd: (?P<what>/.*): Permission denied", "the working directory {what} may not be entered by your user there"),
    (r"(?:can't cd to|cd:) (?P<what>/.*?)(?:: .*)?$", "the working directory {what} is not there"),
    (r"docker: (?:command )?not found|docker: No such file", "there is no docker"),
    (
        r"Unable to find image|No such image|image not known|pull access denied",
        "the image is not there; docker pull it",
    ),
    (r"Cannot connect to the Docker daemon|failed to connect to the docker API", "docker does not run"),
    (
        r"permission denied while trying to connect to the [Dd]ocker",
        "docker does not let you in; join the group docker there, or set runner.docker_config.docker_sudo",
    ),
    (r"could not select device driver", "docker has no GPU runtime there; install the NVIDIA container toolkit"),
    (r"sudo: a password is required|sudo: .*password", "sudo asks for a password"),
    (r"sudo: (?:command )?not found", "there is no sudo"),
    (r"exec: \\?\"(?P<what>[^\"\\]*)\\?\": executable file not found", "there is no {what} in the image"),
    (r"docker: Error response from daemon: (?P<what>.*)", "docker refuses: {what}"),
    (
        r"(?:exec|env|sh)[^:]*:[^/]*?(?P<what>/[^:'\"\u2019]*)[\u2019'\"]?: (?:not found|No such file or directory)",
        "its interpreter {what} is not there; install it at the same path as here",
    ),
    (r"Can't open user config file (?P<what>.*?): ", "ssh cannot read runner.ssh_config, {what}"),
    (r"Could not resolve hostname", "its name is unknown"),
    (r"No route to host", "there is no route to it; is it switched on, and its network up?"),
    (r"Connection refused", "it refuses the connection; does an sshd run there, and at this port?"),
    (
        r"[Cc]onnection timed out|Operation timed out|[Cc]onnect(?:ion)? timeout",
        "it did not answer in time; is it switched on, and does a firewall stand between?",
    ),
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key for .* has changed",
        "its host key is not the one that is known; "
        "if it was installed anew, remove the old key (ssh-keygen -R), else somebody stands between",
    ),
    (r"Host key verification failed|host key is known", "its host key is not known; log in once by hand and accept it"),
    (r"Permission denied \((?P<what>[^)]*)\)", "it accepts none of your keys ({what}); add your public key there"),
    (r"Timeout, server .* not responding", "the connection died: it has not answered for 15 s"),
    (
        r"client_loop|Connection (?:to .* )?closed|Broken pipe|Connection reset|kex_exchange_identification",
        "the connection broke",
    ),
)

_HARMLESS: Final = re.compile(r"Warning: Permanently added|Pseudo-terminal|^pdsh@|^\s*$|^@+$")


def explain(stderr_lines: Sequence[str], status: int, *, host: HostPlan, transport: Transport) -> str:
    """Return why a client failed for a machine: what it said in plain words, and the command to try by hand.

    `stderr_lines` are those of this machine, without its name before them.
    """
    said = [line for line in stderr_lines if not _HARMLESS.search(line)]
    for pattern, words in _PATTERNS:
        for line in said:
            if found := re.search(pattern, line):
                return f"{words.format(**found.groupdict())} (try: {transport.by_hand(host)})"
    if said:
        return f"{said[-1].strip()} (try: {transport.by_hand(host)})"
    if status in (255, 137):
        return "it went away without a word: its processes were killed, or the machine has stopped"
    return f"it ended with status {status} without a word (try: {transport.by_hand(host)})"
