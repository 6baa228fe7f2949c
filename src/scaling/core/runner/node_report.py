"""NodeReport: the one line in which a machine reports how its processes ended."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final

from scaling.core.runner.outcome import ProcessEnd
from scaling.core.runner.report import Report

_MARK: Final = "scaling_node_report"


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """How the processes of one machine ended."""

    run_id: str
    index: int
    """The machine's number in the plan."""
    ends: tuple[ProcessEnd, ...] = ()
    """How each process ended; empty where none was started."""
    problem: Report | None = None
    """Why the machine itself could not do its part, such as a port that is taken."""

    def to_line(self) -> str:
        """Return the report as a line of JSON."""
        values = {
            "run_id": self.run_id,
            "index": self.index,
            "ends": [end.as_dict() for end in self.ends],
            "problem": None if self.problem is None else asdict(self.problem),
        }
        return json.dumps({_MARK: values}, allow_nan=True)

    @classmethod
    def from_line(cls, line: str, *, run_id: str) -> NodeReport | None:
        """Return the report in a line of this run; None where the line is something else, such as output."""
        if _MARK not in line:
            return None
        try:
            values = json.loads(line)[_MARK]
            if values["run_id"] != run_id:
                return None
            problem = None if values["problem"] is None else Report(**values["problem"])
            ends = tuple(ProcessEnd.from_dict(end) for end in values["ends"])
            return cls(run_id=values["run_id"], index=values["index"], ends=ends, problem=problem)
        except (ValueError, KeyError, TypeError):
            return None
