"""Which variables reach other machines, and which of them nobody may see."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaling.core.runner.config import FORWARDED
from scaling.core.runner.environment import forwarded, is_secret, process_defaults


def test_what_fits_a_pattern_is_forwarded_and_nothing_else(tmp_path: Path) -> None:
    environ = {
        "NCCL_DEBUG": "INFO",
        "OMP_NUM_THREADS": "3",
        "PYTHONPATH": "src",
        "HOME": "/root",
        "PATH": "/bin",
        "XNCCL_A": "",
    }
    found = forwarded(environ, FORWARDED, home=tmp_path)
    assert (found.plain, found.secrets) == ({name: environ[name] for name in sorted(list(environ)[:3])}, {})
    assert forwarded(environ, ["HO?E"], home=tmp_path).plain == {"HOME": "/root"}
    assert forwarded(environ, [], home=tmp_path).plain == {}


def test_the_lines_of_deepspeed_env_win(tmp_path: Path) -> None:
    lines = ["# comment", "", "NCCL_DEBUG = WARN ", "MY=a=b", "not a line", "HF_TOKEN=hush", "bad name=1"]
    (tmp_path / ".deepspeed_env").write_text("\n".join(lines))
    found = forwarded({"NCCL_DEBUG": "INFO"}, FORWARDED, home=tmp_path)
    assert found.plain == {"MY": "a=b", "NCCL_DEBUG": "WARN"}
    assert found.secrets == {"HF_TOKEN": "hush"}


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "MY_SECRET_2", "password", "TORCH_AUTH_TOKEN"])
def test_a_name_that_sounds_secret_is_kept_apart(tmp_path: Path, name: str) -> None:
    assert is_secret(name)
    found = forwarded({name: "hush"}, ["*"], home=tmp_path)
    assert (found.plain, found.secrets) == ({}, {name: "hush"})


def test_defaults_give_way_to_what_the_user_has_set() -> None:
    assert process_defaults({}, 2, gpus=(3, 5))["CUDA_VISIBLE_DEVICES"] == "3,5"
    given = {"CUDA_VISIBLE_DEVICES": "1", "OMP_NUM_THREADS": "7", "TORCH_CPP_LOG_LEVEL": "INFO", "OMP_WAIT_POLICY": "A"}
    given["PYTORCH_CUDA_ALLOC_CONF"] = "backend:native"
    assert process_defaults(given, 2, gpus=(3, 5)) == {}
    assert process_defaults({}, 2, gpus=None)["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert "PYTORCH_ALLOC_CONF" not in process_defaults({"PYTORCH_ALLOC_CONF": ""}, 2, gpus=None)
    assert "CUDA_VISIBLE_DEVICES" not in process_defaults({}, 2, gpus=None)
