"""Sphinx, as `make docs` calls it, refuses what leads nowhere."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from docs.generator.pages import REPOSITORY
from docs.generator.self_contained import check
from scaling.core import OnResume, Trainer, TrainerConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("sphinx") is None, reason='Sphinx is not installed; pip install "scaling[docs]"'),
]

INDEX = """# Pages

[The other](other.md), [a part of it](other.md#the-part), {confval}`drawn.size` and {py:class}`scaling.core.Box`.

```{toctree}
other
```
"""
OTHER = """# Other

## The part

```{confval} drawn.size
How large.
```

```{eval-rst}
.. autoclass:: scaling.core.Box
   :members:
```
"""
FAULTS = {
    "[gone](gone.md)": "gone.md",
    "[gone](other.md#the-whole)": "the-whole",
    "[gone](#nowhere)": "nowhere",
    "{confval}`drawn.colour`": "drawn.colour",
    "{py:class}`scaling.core.Bix`": "scaling.core.Bix",
    "![gone](gone.svg)": "gone.svg",
}


def build(folder: Path, index: str) -> subprocess.CompletedProcess[str]:
    (folder / "pages").mkdir(exist_ok=True)
    (folder / "pages/index.md").write_text(index)
    (folder / "pages/other.md").write_text(OTHER)
    options = ["-q", "-W", "--keep-going", "-c", str(REPOSITORY / "docs")]
    command = [sys.executable, "-m", "sphinx", *options, str(folder / "pages"), str(folder / "html")]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_a_sound_site_is_built_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    built = build(tmp_path, INDEX)
    assert (built.returncode, built.stderr) == (0, "")
    assert not list(check(tmp_path / "html"))
    page = (tmp_path / "html/index.html").read_text()
    assert 'href="other.html#the-part"' in page
    assert 'href="other.html#confval-drawn.size"' in page
    assert 'href="other.html#scaling.core.Box"' in page


def test_every_broken_link_anchor_reference_and_picture_is_named(tmp_path: Path) -> None:
    built = build(tmp_path, INDEX + "\n" + "\n\n".join(FAULTS))
    assert built.returncode == 1
    warnings = [line for line in built.stderr.splitlines() if "WARNING" in line]
    for fault, named in FAULTS.items():
        assert [line for line in warnings if named in line], (fault, built.stderr)
    assert len(warnings) == len(FAULTS)


def test_a_page_that_is_in_no_table_of_contents_is_named(tmp_path: Path) -> None:
    built = build(tmp_path, "# Pages\n")
    assert built.returncode == 1
    assert "other.md" in built.stderr


def test_sections_and_enumerations_are_shown_without_arguments() -> None:
    from docs.generator.extension import show_signature

    def shown(thing: type) -> str | None:
        app: Any = None
        return show_signature(app, "class", thing.__name__, thing, {}, "(a=<factory>)", None)[0]

    assert shown(Trainer) == "(a=...)"
    assert shown(TrainerConfig) == ""
    assert shown(OnResume) == ""
