"""The rules the decoder graph chooses tokens by, on a WebGPU device, against what openai/whisper's would choose."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.checkpoints.load import Checkpoint, Dimensions
from kernels.inputs import AUDIO, CHOSEN, LOG_PROBABILITIES, RULES
from kernels.rules import Rules
from kernels.webgpu.decoder.graph import DecoderGraph
from kernels.webgpu.device import Device
from tests.support import rule_cases
from tests.support.decoding import BEGIN, EOT, N_VOCAB, NO_TIMESTAMPS, Array, cross_memory, rules, step
from tests.support.rule_cases import RuleCase, each_rule_case


class Scripted:
    """A decoder of no layers that says, at position p, the logits of row p less their mean, whatever came before.

    The token table is 2⁻¹⁴ of the identity: the positions' embeddings are the logits, the tokens' hardly add to them.
    """

    def __init__(self, device: Device, logits: Array) -> None:
        n_positions, n_vocab = logits.shape
        n = -(-(n_vocab + 2) // 8) * 8
        rows = np.zeros((n_positions, n), np.float64)
        rows[:, :n_vocab] = logits - logits.mean(1, keepdims=True)
        scale = 1.1 * float(np.sqrt((rows**2).sum(1) / n).max()) + 0.1
        rows /= scale
        # The two columns after the vocabulary's make the mean 0 and the variance 1.
        mean, left = -rows.sum(1) / 2, n - (rows**2).sum(1)
        spread = np.sqrt(left / 2 - mean**2)
        rows[:, n_vocab], rows[:, n_vocab + 1] = mean + spread, mean - spread
        dims = Dimensions(8, 8, 8, 1, 1, n_vocab, n_positions, n, 1, 0)
        arrays: dict[str, Array] = {
            "decoder.token_embedding.weight": (np.eye(n_vocab, n) / 2**14).astype(np.float16),
            "decoder.positional_embedding": rows.astype(np.float32),
            "decoder.ln.weight": np.full(n, 2**14 * scale, np.float32),
            "decoder.ln.bias": np.zeros(n, np.float32),
        }
        checkpoint = Checkpoint(dims, arrays, "{}", (), False)
        cross = cross_memory(device, checkpoint, np.zeros((8, 8), np.float32))
        self.graph = DecoderGraph(device, checkpoint, lambda context: cross)

    def choose(self, history: Sequence[Sequence[int]], wanted: NDArray[np.int32]) -> tuple[Array, Array]:
        """→ chosen tokens and their log-probabilities after these histories."""
        context = self.graph.init_execution_context({1: object()})
        context.set_input(AUDIO, np.array([1], np.int32))
        context.set_input(RULES, wanted)
        step(context, *history)
        return context.get_output(CHOSEN), context.get_output(LOG_PROBABILITIES)


@each_rule_case
def test_each_case_of_the_table(device: Device, case: RuleCase) -> None:
    """After the sampled tokens as input, and after the device has chosen them itself."""
    rows = np.full((len(case.sampled) + 2, rule_cases.N_VOCAB), -20.0)
    rows[np.arange(len(case.sampled)), case.sampled] = 20
    rows[len(case.sampled)] = case.logits
    decoder, expected = Scripted(device, rows), [*case.sampled, case.chosen]
    for n_given in {len(case.sampled), 0}:
        wanted = case.tensor.copy()
        wanted[0] = len(expected) - n_given
        history = [rule_cases.PROMPT, *case.sampled[:n_given]]
        if case.chosen is None:
            with pytest.raises(ValueError, match="no token"):
                decoder.choose([history], wanted)
        else:
            assert decoder.choose([history], wanted)[0].tolist() == [expected[n_given:]]


def test_runs_of_random_logits_follow_the_rules(device: Device) -> None:
    rng = np.random.default_rng(5)
    n_positions, begins = 120, [[0], [1], [2], [3]]
    script = rng.standard_normal((n_positions, N_VOCAB)) * 4
    # Timestamps, which may not go back, are likeliest at a time that goes on.
    time, now = np.arange(N_VOCAB - BEGIN), 2 * np.arange(n_positions)[:, None]
    script[:, BEGIN:] += 6 - np.abs(time - now).clip(max=12)
    wanted = rules(
        n_positions - 1,
        sample_begin=1,
        no_timestamps=NO_TIMESTAMPS,
        limit=40,
        suppress=[EOT, 3, 4, 99],
        begin_suppress=[8],
    )
    chosen, likely = Scripted(device, script).choose(begins, wanted)
    parsed = Rules.parse(wanted, N_VOCAB)
    histories = [list(begin) for begin in begins]
    for position in range(n_positions - 1):
        logits = np.repeat(script[position : position + 1], len(begins), axis=0).astype(np.float32)
        expected, scores = parsed.choose(logits, histories)
        assert chosen[:, position].tolist() == expected
        assert np.abs(likely[:, position] - scores).max() < 2e-3
        for history, token in zip(histories, expected, strict=True):
            history.append(token)
    assert 20 < (chosen >= BEGIN).sum() / len(begins) < 80  # both kinds were chosen


def test_an_ended_sequence_goes_on_ending_until_all_have(device: Device) -> None:
    script = np.full((9, N_VOCAB), -4.0)
    script[[0, 1], [10, 11]] = 4
    script[2:, EOT] = 4
    wanted = rules(8, sample_begin=0, timestamp_begin=-1)
    decoder = Scripted(device, script)
    chosen, likely = decoder.choose([[1], [2]], wanted)
    assert chosen.tolist() == [[10, 11, EOT]] * 2  # and stops
    chosen, likely = decoder.choose([[1], [EOT]], wanted)
    assert chosen.tolist() == [[10, 11, EOT], [EOT, EOT, EOT]]
    assert likely[1].tolist() == [0, 0, 0] and (likely[0] < 0).all()
