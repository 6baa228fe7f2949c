"""Public names are loaded when first used, and listed before that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = {
    "whole/__init__.py": """
        from typing import TYPE_CHECKING
        from scaling.core import load_on_use
        if TYPE_CHECKING:
            from whole.part import *
            from whole.other import Other as Other
        load_on_use(__name__)
    """,
    "whole/part/__init__.py": """
        from typing import TYPE_CHECKING
        from scaling.core import load_on_use
        if TYPE_CHECKING:
            from whole.part.heavy import Heavy as Heavy
            from whole.part.heavy import weigh as weigh
        load_on_use(__name__)
    """,
    "whole/part/heavy.py": "class Heavy: pass\ndef weigh(): return 7",
    "whole/other.py": "class Other: pass",
}


def said_by(code: str, folder: Path) -> str:
    for name, text in PACKAGES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(line.removeprefix(" " * 8) for line in text.split("\n")))
    command = [sys.executable, "-W", "error", "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); {code}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import whole; print(whole.__all__)", "['Heavy', 'weigh', 'Other']"),
        ("import whole; 'weigh' in dir(whole); print('whole.part.heavy' in sys.modules)", "False"),
        ("import whole; print(whole.weigh())", "7"),
        ("from whole.part import Heavy; import whole; print(whole.Heavy is Heavy)", "True"),
        ("from whole import *; print(weigh(), Other.__name__)", "7 Other"),
        ("from whole import part; print(part.__name__)", "whole.part"),
        ("import whole; print(getattr(whole, 'absent', None))", "None"),
    ],
)
def test_a_name_is_loaded_when_it_is_used(code: str, said: str, tmp_path: Path) -> None:
    assert said_by(code, tmp_path) == said


def test_the_whole_library_is_listed_without_torch(tmp_path: Path) -> None:
    code = "import scaling.core, scaling.transformer; print(len(scaling.core.__all__) > 100, 'torch' in sys.modules)"
    assert said_by(code, tmp_path) == "True False"
