"""An instruction set that every machine has: of functions of the standard library, what their docstrings say first."""

from __future__ import annotations

import ast
import hashlib
import json
import sysconfig
import textwrap
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

from scaling.core import DataError, write_atomically

TRAINING, VALIDATION = "training.jsonl", "validation.jsonl"
LONGEST_SIGNATURE, LONGEST_SENTENCE = 160, 80
VALIDATION_SHARE = 8
"""One module in so many is for validation, none of its functions are for training."""

Record = dict[str, str]


def write_data(directory: Path) -> tuple[Path, Path]:
    """Write a file of records for training, another for validation; the same ones whenever this Python runs."""
    files = directory / TRAINING, directory / VALIDATION
    found: tuple[list[Record], list[Record]] = ([], [])
    seen: set[str] = set()
    for name, text in modules():
        held_out = int(hashlib.sha256(name.encode()).hexdigest(), 16) % VALIDATION_SHARE == 0
        for record in records(text):
            if record["completion"] not in seen:  # what is copied between modules would be learnt by heart
                seen.add(record["completion"])
                found[held_out].append(record)
    if not all(found):
        raise DataError("this Python comes without the sources of its standard library, of which the records are made")
    directory.mkdir(parents=True, exist_ok=True)
    for path, part in zip(files, found, strict=True):
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in part).encode())
    return files


def modules() -> Iterator[tuple[str, str]]:
    """Yield name and source of the modules of the standard library that are in no package."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        with tokenize.open(path) as file:
            yield path.name, file.read()


def records(text: str) -> Iterator[Record]:
    """Yield a record for each function with a docstring whose first line is a sentence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about old spellings in the library
        tree = ast.parse(text)
    lines = text.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (docstring := ast.get_docstring(node)):
            signature = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.body[0].lineno - 1])).strip()
            sentence = docstring.partition("\n")[0].strip()
            if 0 < len(signature) <= LONGEST_SIGNATURE and len(sentence) <= LONGEST_SENTENCE and sentence.endswith("."):
                yield {"prompt": f"{signature}\n", "completion": sentence}
