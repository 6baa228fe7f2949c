"""What inference can get wrong where models are cut, each as an edit of this library's source and what notices it."""

from __future__ import annotations

from tests.cli import test_generate
from tests.core.checkpoint import test_newest
from tests.core.nn import test_cached_attention, test_logits, test_token_scores
from tests.core.pipeline import test_ring_engine
from tests.mutations.over_ranks import BugOverRanks
from tests.transformer.evaluation import test_corpus, test_token_bytes
from tests.transformer.inference import test_chat, test_compacted_rows, test_scoring
from tests.transformer.inference.generation import test_choosing, test_sampling

INFERENCE_BUGS = (
    BugOverRanks(
        "a new text finds in its row what another left behind",
        "scaling.core.nn.cached_attention:KeyValueCache._prefill",
        [("row[:, stop : self._used[span.pool]] = 0", "pass")],
        test_cached_attention.short_texts_follow_ill_ones,
        1,
    ),
    BugOverRanks(
        "a text that moves leaves behind its end what was in the row",
        "scaling.core.nn.cached_attention:KeyValueCache.move",
        [("kept[:, target, :, stop : self._used[pool]] = 0", "pass")],
        test_cached_attention.short_texts_follow_ill_ones,
        1,
    ),
    BugOverRanks(
        "rows of different lengths see as much as the longest",
        "scaling.core.nn.cached_attention:_decode_plan",
        [("not found.alike", "False")],
        test_cached_attention.texts_come_and_go_often,
        1,
    ),
    BugOverRanks(
        "new positions take the place of some that a window still shows",
        "scaling.core.nn.cached_attention:KeyValueCache._prefill",
        [("start + 1 - positions", "start + 2 - positions")],
        test_cached_attention.texts_come_and_go_often,
        1,
    ),
    BugOverRanks(
        "the last stage takes in what it has chosen last, whichever group it is of",
        "scaling.core.pipeline.ring_engine:RingRun._accept",
        [("self._chosen.pop(micro_batch)", "self._chosen.popitem()[1]")],
        test_ring_engine.generate,
        2,
    ),
    BugOverRanks(
        "tokens are taken in before it is the turn of their group",
        "scaling.core.pipeline.ring_engine:RingRun.take_in",
        [("micro_batch - self._groups", "micro_batch - max(1, self._groups - 1)")],
        test_ring_engine.generate,
        2,
    ),
    BugOverRanks(
        "the last part of the vocabulary is filled up at its start",
        "scaling.core.nn.logits:gather_vocabulary",
        [("(0, shard.local_length - found)", "(shard.local_length - found, 0)")],
        test_logits.gather_in_parts,
        2,
    ),
    BugOverRanks(
        "all tokens of a text are drawn by the same number",
        "scaling.transformer.inference.generation.choosing:uniform",
        [('"token", draw.position', '"token"')],
        test_choosing.draw_numbers,
        1,
    ),
    BugOverRanks(
        "rows with options of their own are given the logits of others",
        "scaling.transformer.inference.generation.choosing:choose_tokens",
        [("logits[rows]", "logits[: len(rows)]")],
        test_choosing.choose_alone_and_together,
        1,
    ),
    BugOverRanks(
        "top-p is a share of what min-p has left over",
        "scaling.transformer.inference.generation.sampling:drawable",
        [("(sampling.top_k is None or sampling.top_p is None)", "True")],
        test_sampling.filter_like_transformers,
        1,
    ),
    BugOverRanks(
        "of equally likely tokens on several ranks that with the highest number counts",
        "scaling.core.nn.token_scores:linear_token_scores",
        [
            ("-torch.where(has_N, index_N + offset, _NOWHERE)", "torch.where(has_N, index_N + offset, -1)"),
            ("-lowest_N", "lowest_N"),
        ],
        test_token_scores.score_in_parts,
        2,
    ),
    BugOverRanks(
        "texts that are scored together see each other",
        "scaling.transformer.inference.scoring:Scoring.packed",
        [("documents[None]", "None")],
        test_scoring.score_together,
        1,
    ),
    BugOverRanks(
        "placeholders of a soft prompt are scored in place of the first tokens",
        "scaling.transformer.inference.scoring:Scoring.packed",
        [("end - len(row)", "end - len(row) - placeholders")],
        test_scoring.score_together,
        1,
    ),
    BugOverRanks(
        "a message that spells the beginning of a text begins another",
        "scaling.transformer.inference.chat:ChatText.prompt",
        [("made.written", "None")],
        test_chat.begin_once,
        1,
    ),
    BugOverRanks(
        "a history leaves no room for the answer",
        "scaling.transformer.inference.chat:Conversation.ask",
        [
            (
                "len(prompt.tokens) + self._max_tokens <= self._context_length",
                "len(prompt.tokens) <= self._context_length",
            )
        ],
        test_chat.fill_the_context,
        1,
    ),
    BugOverRanks(
        "copies of a model evaluate the same rows",
        "scaling.transformer.evaluation.corpus:_evaluate",
        [("data_parallel_rank=topology.index(Axis.DATA)", "data_parallel_rank=0")],
        test_corpus.evaluate_in_parts,
        3,
    ),
    BugOverRanks(
        "a byte within a character counts as the letter that stands for it",
        "scaling.transformer.evaluation.token_bytes:_measure",
        [("len(token) if alphabet.issuperset(token) else len(token.encode())", "len(token.encode())")],
        test_token_bytes.measure_cut_characters,
        1,
    ),
    BugOverRanks(
        "a checkpoint that is removed while it is read is an error",
        "scaling.core.checkpoint.newest:_verdict",
        [("bool(named) and _is_removed(stored)", "False")],
        test_newest.go_in_the_middle,
        1,
    ),
    BugOverRanks(
        "a prompt with a seed of its own is drawn by that of all",
        "scaling.cli.generate:asked_seeds",
        [("one if request.seed is None else request.seed", "one")],
        test_generate.prompts_keep_their_seeds,
        1,
    ),
    BugOverRanks(
        "a text that moves takes the keys of another row with it",
        "scaling.transformer.inference.generation.batching:_Pool._move",
        [("source, target, row.filled", "target, target, row.filled")],
        test_compacted_rows.short_and_long_texts,
        1,
    ),
    BugOverRanks(
        "new tokens stand one position too early",
        "scaling.transformer.inference.generation.batching:Batching.next_item",
        [("positions.append(row.filled)", "positions.append(row.filled - 1)")],
        test_compacted_rows.short_and_long_texts,
        1,
    ),
    BugOverRanks(
        "the row that is last takes the place of one that goes on",
        "scaling.transformer.inference.generation.batching:_Pool.let_go",
        [("(decoding or behind)[-1], target=gap", "(decoding or behind)[-1], target=max(0, gap - 1)")],
        test_compacted_rows.short_and_long_texts,
        1,
    ),
    BugOverRanks(
        "a place is begun to be read again where a part of it ended",
        "scaling.transformer.inference.generation.batching:Batching.next_item",
        [("positions += range(start, start + count)", "positions += range(count)")],
        test_compacted_rows.short_and_long_texts,
        1,
    ),
)
