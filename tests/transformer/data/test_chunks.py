"""Work is divided by the sizes of the files alone."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.transformer.data.chunks import plan_chunks

files = st.lists(st.tuples(st.sampled_from([".jsonl", ".txt", ".jsonl.gz"]), st.integers(0, 100)), max_size=12)


@settings(max_examples=60)
@given(files, st.integers(1, 50))
def test_chunks_cover_every_file_once_and_in_order(files: list[tuple[str, int]], chunk_bytes: int) -> None:
    named = [(Path(f"{number}{suffix}"), size) for number, (suffix, size) in enumerate(files)]
    chunks = plan_chunks(named, chunk_bytes)
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert sum(chunk.size for chunk in chunks) == sum(size for _, size in named)
    pieces = [piece for chunk in chunks for piece in chunk.pieces]
    covered: list[tuple[Path, int]] = []
    for path, size in named:
        end = 0
        while pieces and pieces[0].path == path:
            piece = pieces.pop(0)
            assert piece.start == end
            end = size if piece.stop is None else piece.stop
        covered.append((path, end))
    assert covered == named
    assert not pieces
    for chunk in chunks:
        assert chunk.size <= chunk_bytes or not any(piece.stop for piece in chunk.pieces)


def test_small_files_share_a_chunk_and_large_ones_are_cut_where_they_can_be() -> None:
    named = [(Path("a.txt"), 4), (Path("b.txt"), 4), (Path("c.jsonl"), 25), (Path("d.jsonl.gz"), 25)]
    sizes = [[piece.path.name for piece in chunk.pieces] for chunk in plan_chunks(named, 10)]
    assert sizes == [["a.txt", "b.txt"], ["c.jsonl"], ["c.jsonl"], ["c.jsonl"], ["d.jsonl.gz"]]
    full = plan_chunks([(Path("a.txt"), 12), (Path("b.txt"), 4), (Path("c.txt"), 6), (Path("d.txt"), 1)], 10)
    assert [chunk.size for chunk in full] == [12, 10, 1]
