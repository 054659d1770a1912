"""Each decoding rule in turn: what the likeliest token would be without it, and what is chosen with it."""

from dataclasses import replace

import numpy as np
import pytest

from kernels.rules import Rules, log_sum_exp

# Text 0–7, end of text 8, start of text 9, prompt 10, no timestamps 11, timestamps 12–19; prompts are of one token.
N_VOCAB, EOT, SOT, NO_TIMESTAMPS, T0 = 20, 8, 9, 11, 12
PLAIN = Rules(1, 1, EOT, -1, NO_TIMESTAMPS, -1, np.array([], np.int32), np.array([], np.int32))
TIMED = replace(PLAIN, timestamp_begin=T0)


def chosen(rules: Rules, likely: dict[int, float], sampled: tuple[int, ...] = ()) -> int:
    """What is chosen after the prompt and `sampled`, when `likely` tokens have these logits and all others -20."""
    logits = np.full((1, N_VOCAB), -20, np.float32)
    for token, logit in likely.items():
        logits[0, token] = logit
    return rules.choose(logits, [[SOT, *sampled]])[0][0]


def listed(*tokens: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(tokens, np.int32)


def test_without_rules_the_likeliest_wins_and_ties_go_to_the_lower_id() -> None:
    assert chosen(PLAIN, {3: 2, 5: 3}) == 5
    assert chosen(PLAIN, {5: 3, 3: 3}) == 3
    assert chosen(PLAIN, {NO_TIMESTAMPS: 3, 5: 1}) == NO_TIMESTAMPS


def test_suppressed_tokens_never_come() -> None:
    rules = replace(PLAIN, suppress=listed(5, 6))
    assert chosen(rules, {5: 4, 6: 3, 3: 2}) == 3
    assert chosen(rules, {5: 4, 6: 3, 3: 2}, (1, 2)) == 3


def test_blank_is_suppressed_at_the_beginning_only() -> None:
    rules = replace(PLAIN, begin_suppress=listed(2, EOT))
    assert chosen(rules, {2: 4, EOT: 3, 3: 2}) == 3
    assert chosen(rules, {2: 4, EOT: 3, 3: 2}, (1,)) == 2
    assert chosen(rules, {EOT: 3, 3: 2}, (1,)) == EOT


def test_no_timestamps_is_not_chosen_among_timestamps() -> None:
    assert chosen(TIMED, {NO_TIMESTAMPS: 4, 3: 2}, (T0, 1)) == 3


def test_a_pair_of_timestamps_is_followed_by_text() -> None:
    assert chosen(TIMED, {17: 5, 3: 2}, (T0, 1, 14, 14)) == 3
    assert chosen(TIMED, {17: 5, 3: 2}, (T0,)) == 3  # the first opens a segment by itself


def test_a_segment_that_ended_is_followed_by_a_timestamp_or_the_end() -> None:
    assert chosen(TIMED, {3: 5, 15: -1}, (T0, 1, 14)) == 15
    assert chosen(TIMED, {3: 5, EOT: 1}, (T0, 1, 14)) == EOT


def test_timestamps_do_not_run_back() -> None:
    assert chosen(TIMED, {13: 5, 16: 3}, (T0, 1, 15)) == 16
    assert chosen(TIMED, {15: 5, 16: 3}, (T0, 1, 15)) == 15  # the next segment may start where this one ends


def test_segments_are_not_empty() -> None:
    assert chosen(TIMED, {15: 5, 16: 3}, (T0, 1, 15, 15, 2)) == 16


def test_a_timestamp_comes_first() -> None:
    assert chosen(TIMED, {3: 5, 15: -1}) == 15


def test_the_first_timestamp_is_limited() -> None:
    assert chosen(replace(TIMED, max_initial_timestamp_index=2), {17: 5, 14: 1, 15: 3}) == 14
    assert chosen(replace(TIMED, max_initial_timestamp_index=0), {17: 5}) == T0
    assert chosen(replace(TIMED, max_initial_timestamp_index=2), {17: 5}, (T0, 1)) == 17


def test_timestamps_likelier_together_than_any_text_win() -> None:
    together = dict.fromkeys(range(13, 20), 0.0)  # log 7 = 1.95
    assert chosen(TIMED, {3: 1.9, **together}, (T0, 1)) == 13
    assert chosen(TIMED, {3: 2.0, **together}, (T0, 1)) == 3
    # What a rule before it forbade does not count.
    assert chosen(replace(TIMED, suppress=listed(13)), {3: 1.9, **together}, (T0, 1)) == 3


def test_without_timestamp_rules_they_are_tokens_like_others() -> None:
    assert chosen(PLAIN, {17: 5, 3: 2}) == 17
    assert chosen(PLAIN, {3: 5, 13: 2}, (T0, 1, 14)) == 3


def test_log_probabilities_are_of_what_was_left() -> None:
    logits = np.array([[1, 2, 3, 4]], np.float32)
    rules = replace(PLAIN, eot=0, suppress=listed(3))
    tokens, scores = rules.choose(logits, [[1, 1]])
    assert tokens == [2]
    assert scores[0] == pytest.approx(3 - np.log(np.exp([1, 2, 3]).sum()), abs=1e-6)
    assert log_sum_exp(np.full(3, -np.inf, np.float32)) == -np.inf


def test_an_ended_sequence_goes_on_ending() -> None:
    logits = np.zeros((2, N_VOCAB), np.float32)
    logits[:, 3] = 5
    tokens, scores = PLAIN.choose(logits, [[SOT, 1, EOT], [SOT, 1, 2]])
    assert tokens == [EOT, 3] and scores[0] == 0 and scores[1] < 0


def test_rules_that_leave_nothing_are_an_error() -> None:
    with pytest.raises(ValueError, match="no token"):
        chosen(replace(PLAIN, suppress=np.arange(N_VOCAB, dtype=np.int32)), {})


def test_parsing_reads_every_number() -> None:
    rules = Rules.parse(listed(8, 4, EOT, T0, NO_TIMESTAMPS, 50, 2, 1, 5, 6, 7), N_VOCAB)
    assert (rules.n_steps, rules.sample_begin, rules.eot, rules.timestamp_begin) == (8, 4, EOT, T0)
    assert (rules.no_timestamps, rules.max_initial_timestamp_index) == (NO_TIMESTAMPS, 50)
    assert (rules.suppress.tolist(), rules.begin_suppress.tolist()) == ([5, 6], [7])


@pytest.mark.parametrize(
    "numbers",
    [
        (1, 1, EOT, -1, -1, -1, 0),
        (1, 1, EOT, -1, -1, -1, 1, 0),
        (1, 1, EOT, -1, -1, -1, 0, 0, 5),
        (1, 1, EOT, -1, -1, -1, -1, 1),
        (1, 1, EOT, -1, -1, -1, 2**31 - 1, 2**31 - 1, 1),
        (-1, 1, EOT, -1, -1, -1, 0, 0),
        (1, -1, EOT, -1, -1, -1, 0, 0),
        (1, 1, -1, -1, -1, -1, 0, 0),
        (1, 1, N_VOCAB, -1, -1, -1, 0, 0),
        (1, 1, EOT, N_VOCAB, -1, -1, 0, 0),
        (1, 1, EOT, -2, -1, -1, 0, 0),
        (1, 1, EOT, EOT, -1, -1, 0, 0),
        (1, 1, EOT, T0, N_VOCAB, -1, 0, 0),
        (1, 1, EOT, T0, -2, -1, 0, 0),
        (1, 1, EOT, T0, -1, -2, 0, 0),
        (1, 1, EOT, -1, -1, -1, 1, 0, N_VOCAB),
        (1, 1, EOT, -1, -1, -1, 0, 1, -1),
    ],
)
def test_nonsense_is_refused(numbers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rules"):
        Rules.parse(listed(*numbers), N_VOCAB)


def test_rules_of_another_type_are_refused() -> None:
    for tensor in (np.zeros(8, np.int64), np.zeros((1, 8), np.int32), np.zeros(0, np.int32)):
        with pytest.raises(ValueError, match="rules must be i32"):
            Rules.parse(tensor, N_VOCAB)
