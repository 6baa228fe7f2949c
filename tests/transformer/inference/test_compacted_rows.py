"""Texts that end at different times make room for others, which go on as they would alone."""

from __future__ import annotations

from tests.transformer.inference.generation_models import build, prompts


def short_and_long_texts(rank: int, world_size: int) -> None:
    model = build("windows")
    ends = [model.generate(prompts()[place], max_tokens=4).completion_tokens[-1] for place in (0, 3, 5)]
    alone = [model.generate(prompt, max_tokens=12, stop_tokens=ends).completion_tokens for prompt in prompts()]
    assert len({len(text) for text in alone}) > 2
    together = model.generate(prompts(), max_tokens=12, stop_tokens=ends, chunk_size=13)
    assert [one.completion_tokens for one in together] == alone
    whole = [model.log_likelihood([prompt], [text])[0].is_greedy for prompt, text in zip(prompts(), alone, strict=True)]
    assert all(whole)


def test_rows_that_end_early_change_no_other_text() -> None:
    short_and_long_texts(0, 1)
