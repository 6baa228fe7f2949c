"""Plays the node of a machine behind a client: `INDEX RUN_ID VERB FOLDER BEHAVIOUR`, by what the fleet sends it.

With VERB run it reads its order first where it is given input. Behaviours: done, fail:MESSAGE, problem:MESSAGE,
die (without a word), killed_rank, listen (leave when asked), early (the same, without a report),
stubborn (only the end of its client ends it), endless (print for ever),
lines:COUNT (print so many on both outputs), beats:COUNT (be done after so many), tell (keep the order).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from scaling.core.runner.node_report import NodeReport
from scaling.core.runner.outcome import ProcessEnd
from scaling.core.runner.report import Report

NEVER = 600.0


def report(*, index: int, run_id: str, codes: list[int], said: Report | None = None, last: tuple[str, ...] = ()) -> str:
    ends = tuple(
        ProcessEnd(
            rank=2 * index + number,
            exit_code=code,
            report=said if code > 0 and code != 75 else None,
            time=time.time(),
            last_lines=last if code < 0 else (),
        )
        for number, code in enumerate(codes)
    )
    return NodeReport(run_id=run_id, index=index, ends=ends).to_line()


def said_by_the_runner() -> Iterator[dict[str, object]]:
    for line in sys.stdin:
        yield json.loads(line)


def run(index: int, run_id: str, folder: Path, behaviour: str) -> int:
    (folder / f"pid_{index}").write_text(str(os.getpid()))
    name, _, value = behaviour.partition(":")
    order = sys.stdin.readline()
    match name:
        case "done":
            print(report(index=index, run_id=run_id, codes=[0, 0]), flush=True)
        case "tell":
            (folder / f"order_{index}").write_text(order)
            print(report(index=index, run_id=run_id, codes=[0, 0]), flush=True)
        case "lines":
            for number in range(int(value)):
                print(f"line {number}", flush=True)
                print(f"error {number}", file=sys.stderr, flush=True)
            print(report(index=index, run_id=run_id, codes=[0, 0]), flush=True)
        case "fail":
            said = Report(message=value, status=65)
            print(report(index=index, run_id=run_id, codes=[65, -15], said=said), flush=True)
            return 65
        case "problem":
            problem = Report(message=value, status=2)
            print(NodeReport(run_id=run_id, index=index, problem=problem).to_line(), flush=True)
            return 2
        case "killed_rank":
            print(report(index=index, run_id=run_id, codes=[-9, -15], last=("the last word",)), flush=True)
            return 1
        case "die":
            print("working", flush=True)
            print("ConnectionRefusedError: Connection refused", file=sys.stderr, flush=True)
            print("client_loop: send disconnect: Broken pipe", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        case "listen":
            print("ready", flush=True)
            for message in said_by_the_runner():
                if "ask" in message or "end" in message:
                    (folder / f"asked_{index}").write_text(str(message.get("ask", "end")))
                    break
            print(report(index=index, run_id=run_id, codes=[75, 75]), flush=True)
            return 75
        case "early":
            next(said_by_the_runner())
            return 75
        case "endless":
            while True:
                print("more", flush=True)
                time.sleep(0.01)
        case "stubborn":
            print("ready", flush=True)
            time.sleep(NEVER)
        case "beats":
            beats = 0
            for message in said_by_the_runner():
                beats += "beat" in message
                if beats == int(value):
                    break
            print(report(index=index, run_id=run_id, codes=[0, 0]), flush=True)
    return 0


def main() -> int:
    index, run_id, verb, folder, behaviour = int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]), sys.argv[5]
    if verb == "run":
        return run(index, run_id, folder, behaviour)
    (folder / f"{verb}_{index}").write_text(" ".join(sys.argv[6:]))
    return 0


sys.exit(main())
