"""What a timeline can get wrong, each as an edit of this library's source and what notices it."""

from __future__ import annotations

from tests.core.profiler import test_clock, test_profiler, test_trace
from tests.core.trainer import test_expected
from tests.mutations.text_bugs import CheckedBug

TIMELINE_BUGS = (
    CheckedBug(
        "a clock that is ahead is set further ahead",
        "scaling.core.profiler.clock:RoundTrip.offset",
        [("self.answered - middle", "middle - self.answered")],
        test_clock.test_a_time_of_a_clock_that_is_behind_becomes_the_other_clocks,
    ),
    CheckedBug(
        "drift between the two measurements is taken back",
        "scaling.core.profiler.clock:ClockMap.__call__",
        [("self.end.value - self.begin.value", "self.begin.value - self.end.value")],
        test_clock.test_a_time_of_a_clock_that_is_behind_becomes_the_other_clocks,
    ),
    CheckedBug(
        "the beginning of what is timed is noted after its end",
        "scaling.core.profiler.profiler:_Recording.__exit__",
        [("self._begin, end", "end, self._begin")],
        test_profiler.test_spans_come_in_order_with_their_durations_and_are_forgotten,
    ),
    CheckedBug(
        "a message begins where its sending ends",
        "scaling.core.trainer.recording:arrows",
        [('if event["cat"] == "send" else', 'if event["cat"] == "none" else')],
        test_expected.test_messages_of_one_name_are_counted_alike_on_both_ends,
    ),
    CheckedBug(
        "what is under way is drawn over what its rank does meanwhile",
        "scaling.core.profiler.trace:span_events",
        [("rows.get(id(span), rank)", "rank")],
        test_trace.test_what_is_under_way_has_rows_behind_those_of_all_ranks_with_names,
    ),
)
