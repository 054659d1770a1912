"""The decoding rules: each case of tests/rules.json, what the log-probabilities are of, and the tensor's form."""

from dataclasses import replace

import numpy as np
import pytest

from kernels.rules import Rules, log_sum_exp
from tests.support.rule_cases import EOT, N_VOCAB, PROMPT, RuleCase, each_rule_case

T0, NO_TIMESTAMPS = 45, 44
PLAIN = Rules(1, 1, EOT, -1, NO_TIMESTAMPS, -1, np.array([], np.int32), np.array([], np.int32))


def listed(*tokens: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(tokens, np.int32)


@each_rule_case
def test_each_case_of_the_table(case: RuleCase) -> None:
    logits, history = case.logits[None].copy(), [[PROMPT, *case.sampled]]
    if case.chosen is None:
        with pytest.raises(ValueError, match="no token"):
            case.rules.choose(logits, history)
    else:
        assert case.rules.choose(logits, history)[0] == [case.chosen]


def test_a_prompts_timestamps_do_not_count() -> None:
    rules = replace(PLAIN, sample_begin=4, timestamp_begin=T0)
    logits = np.full((1, N_VOCAB), -20, np.float32)
    logits[0, 46] = 5
    assert rules.choose(logits, [[PROMPT, 50, 3, PROMPT, T0, 1]])[0] == [46]


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
    tokens, scores = PLAIN.choose(logits, [[PROMPT, 1, EOT], [PROMPT, 1, 2]])
    assert tokens == [EOT, 3] and scores[0] == 0 and scores[1] < 0


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
