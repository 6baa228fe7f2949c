"""A command that is asked to leave does so within seconds, also while a library computes that hears of no signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import hashlib
from scaling.cli.leaving import leaving_soon
with leaving_soon():
    print("ready", flush=True)
    {work}
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("work", ["hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)", "import time; time.sleep(600)"])
def test_a_command_leaves_with_the_conventional_status(work: str, number: signal.Signals) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["src", os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", SCRIPT.format(work=work)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.1)
        process.send_signal(number)
        # Python ends by Ctrl-C as if by the signal itself, where nothing catches it; the command does, and says 130.
        assert process.wait(30) in (128 + number, -number)
