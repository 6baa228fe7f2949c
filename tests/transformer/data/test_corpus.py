"""The built-in corpus: built once, whole or not at all, by however many processes at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from scaling.core.data.memory_map import MemoryMapDataset
from scaling.core.errors import DataError, StorageError
from scaling.transformer.data import corpus
from scaling.transformer.data.corpus import CorpusLimits, CorpusPaths, build_stdlib_corpus, stdlib_documents
from scaling.transformer.data.end_token import END_OF_TEXT
from scaling.transformer.data.tokenizer import Tokenizer

LIMITS = CorpusLimits(vocab_size=400, max_bytes=200_000, tokenizer_bytes=50_000)

BUILD = f"""
import os, signal, sys
from pathlib import Path
from scaling.transformer.data.corpus import CorpusLimits, build_stdlib_corpus

def progress(stage, done, total):
    print(stage, flush=True)
    if stage == sys.argv[2] and done == total:
        os.kill(os.getpid(), signal.SIGKILL)

build_stdlib_corpus(Path(sys.argv[1]), {LIMITS!r}, progress=progress)
"""


def start_build(directory: Path, *, die_after: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD, str(directory), die_after]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> CorpusPaths:
    reported: dict[str, list[tuple[int, int]]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        reported.setdefault(stage, []).append((done, total))

    paths = build_stdlib_corpus(tmp_path_factory.mktemp("corpus") / "not" / "there", LIMITS, progress=progress)
    assert list(reported) == ["training the tokenizer", "tokenizing the corpus"]
    assert reported["training the tokenizer"] == [(0, 1), (1, 1)]
    for calls in reported.values():
        assert calls == sorted(calls)
        assert calls[-1][0] == calls[-1][1] == calls[0][1]
    return paths


def contents(paths: CorpusPaths) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(paths.tokenizer.parent.iterdir())}


def test_documents_are_whole_modules_of_the_library(built: CorpusPaths) -> None:
    documents, tokenizer = MemoryMapDataset(built.prefix), Tokenizer.from_file(built.tokenizer)
    assert documents.meta.tokenizer_sha256 == tokenizer.sha256
    assert tokenizer.vocab_size == 400
    modules = {text for _, text in stdlib_documents()}
    for tokens in documents:
        text = tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
        assert text.endswith(END_OF_TEXT)
        assert text.removesuffix(END_OF_TEXT) in modules
    size = sum(len(tokenizer.decode(tokens.tolist())) for tokens in documents)
    assert 100_000 < size <= 200_000


def test_the_library_is_all_there_without_its_tests_and_other_packages() -> None:
    names = [name for name, _ in stdlib_documents()]
    assert {"argparse.py", "json/decoder.py", "topics/while"} <= set(names)
    assert not [name for name in names if "site-packages" in name or "/test/" in f"/{name}"]
    assert len(names) == len(set(names)) > 400


def test_a_corpus_that_is_there_is_not_built_again(built: CorpusPaths) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        pytest.fail(f"built again: {stage}")

    assert build_stdlib_corpus(built.tokenizer.parent.parent, LIMITS, progress=progress) == built


def test_other_limits_make_another_corpus_beside_it(built: CorpusPaths) -> None:
    limits = CorpusLimits(vocab_size=300, max_bytes=50_000, tokenizer_bytes=20_000)
    other = build_stdlib_corpus(built.tokenizer.parent.parent, limits)
    assert other.prefix != built.prefix
    assert built.tokenizer.exists()


@pytest.mark.parametrize("max_bytes", [None, 10_000_000])
def test_without_a_limit_all_texts_are_taken(
    max_bytes: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [(f"{number}.py", f"number_{number} = {number}\n" * 5) for number in range(20)]
    monkeypatch.setattr(corpus, "stdlib_documents", lambda: iter(texts))
    built = build_stdlib_corpus(tmp_path, CorpusLimits(vocab_size=300, max_bytes=max_bytes, tokenizer_bytes=2_000))
    assert len(MemoryMapDataset(built.prefix)) == 20


@pytest.mark.parametrize("name", ["text.bin", "text.idx", "text.meta.json", "tokenizer.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "delete"])
def test_a_damaged_corpus_is_noticed(
    built: CorpusPaths, tmp_path: Path, name: str, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / built.tokenizer.parent.name
    folder.mkdir()
    for original in built.tokenizer.parent.iterdir():
        content = bytearray(original.read_bytes())
        if original.name == name and damage == "flip":
            content[len(content) // 2] ^= 64
        if original.name != name or damage == "flip":
            (folder / original.name).write_bytes(content)

    class BuiltAgain(Exception):
        pass

    def build(*arguments: object) -> None:
        raise BuiltAgain

    monkeypatch.setattr(corpus, "_build", build)
    with pytest.raises(BuiltAgain):
        build_stdlib_corpus(tmp_path, LIMITS)


@pytest.mark.parametrize("stage", ["training the tokenizer", "tokenizing the corpus"])
def test_a_killed_build_leaves_no_corpus_and_the_next_one_makes_the_same(
    built: CorpusPaths, tmp_path: Path, stage: str
) -> None:
    process = start_build(tmp_path, die_after=stage)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    again = build_stdlib_corpus(tmp_path, LIMITS)
    assert contents(again) == contents(built)
    name = again.tokenizer.parent.name
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".{name}.lock", name]


def test_of_several_processes_one_builds_and_the_others_wait(built: CorpusPaths, tmp_path: Path) -> None:
    processes = [start_build(tmp_path) for _ in range(3)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sum("training the tokenizer" in output for output in outputs) == 1
    assert contents(build_stdlib_corpus(tmp_path, LIMITS)) == contents(built)


def test_sources_that_are_no_text_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "lib"
    (library / "test").mkdir(parents=True)
    (library / "good.py").write_bytes(b"x = 1\r\n")
    (library / "latin.py").write_bytes("# -*- coding: latin-1 -*-\n# \u00e9\n".encode("latin-1"))
    (library / "invalid.py").write_bytes(b"# \xff\n")
    (library / "unknown.py").write_bytes(b"# -*- coding: nonsense -*-\n")
    (library / "binary.py").write_bytes(b"\0\0")
    (library / "empty.py").touch()
    (library / "test" / "test_good.py").write_text("x = 2")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(library)})
    monkeypatch.setattr(corpus, "_help_topics", dict)
    assert list(stdlib_documents()) == [("good.py", "x = 1\n"), ("latin.py", "# -*- coding: latin-1 -*-\n# \u00e9\n")]


def test_a_python_without_sources_says_what_to_do_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "stdlib_documents", lambda: iter(()))
    with pytest.raises(DataError, match=r"without the sources .* data\.data_prefixes"):
        build_stdlib_corpus(tmp_path, LIMITS)


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="building the corpus in"):
        build_stdlib_corpus(tmp_path / "file", LIMITS)
