"""The CPU target's decoder: against a plain float64 Whisper, fast path against single steps, and under misuse."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.cpu.decoder import DecoderContext
from kernels.cpu.encoder import EncoderContext
from kernels.cpu.model import CpuModel
from kernels.cpu.native_library import Library, variants
from tests.support.plain_whisper import PlainWhisper
from tests.support.small_whisper import AUDIO, CHECKPOINT, DIMS, EOT, HEADS, T0, append, close_to, ints, rules


@pytest.fixture(scope="module", params=[*variants(), "NumPy"])
def model(request: pytest.FixtureRequest) -> CpuModel:
    """With each set of C kernels that this processor runs, and with NumPy."""
    library = None if request.param == "NumPy" else Library(request.param)
    return CpuModel(CHECKPOINT, library, use_library=library is not None)


@pytest.fixture
def mel() -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((1, DIMS.n_mels, 2 * DIMS.n_audio_ctx), dtype=np.float32)


@pytest.fixture
def encoder(model: CpuModel, mel: NDArray[np.float32]) -> EncoderContext:
    context = model.encoder.init_execution_context({})
    context.set_input(0, mel)
    context.compute()
    return context


@pytest.fixture
def decoder(model: CpuModel, encoder: EncoderContext) -> DecoderContext:
    context = model.decoder.init_execution_context({7: encoder})
    context.set_input(0, AUDIO)
    return context


def test_both_graphs_agree_with_a_plain_whisper(decoder: DecoderContext, encoder: EncoderContext, mel: Any) -> None:
    plain = PlainWhisper(CHECKPOINT)
    states = plain.encode(mel[0])
    assert encoder.get_output(0).shape == (1, DIMS.n_audio_ctx, DIMS.n_audio_state)
    close_to(encoder.get_output(0)[0], states)
    logits, scores = plain.decode([9, 4, 33, 12], states)
    decoder.set_input(3, rules(0))
    close_to(append(decoder, [[9, 4, 33, 12]]), logits[-1:])
    assert decoder.get_output(0).flags.c_contiguous
    cross = decoder.get_output(3)
    assert cross.shape == (len(HEADS), 4, DIMS.n_audio_ctx) and cross.dtype == np.float32
    close_to(cross, np.stack([scores[layer][head] for layer, head in HEADS]))
    text = np.exp(logits[:, :EOT])
    text /= text.sum(-1, keepdims=True)
    probabilities = decoder.get_output(4)
    assert np.isnan(probabilities[0, 0])
    close_to(probabilities[0, 1:], np.array([text[0, 4], text[1, 33], text[2, 12]]))


def test_prompt_at_once_is_token_by_token(decoder: DecoderContext) -> None:
    at_once = append(decoder, [[9, 4, 33, 12], [8, 0, 59, 7]])
    decoder.set_input(0, AUDIO)
    for tokens in ([[9], [8]], [[4, 33], [0, 59]], [[12], [7]]):
        by_token = append(decoder, tokens)
    close_to(by_token, at_once)


def test_origins_reorder_drop_and_multiply_sequences(decoder: DecoderContext) -> None:
    append(decoder, [[9, 4]])
    append(decoder, [[1], [2], [3]], [0, 0, 0])
    append(decoder, [[4], [5], [6]], [2, 0, 0])
    append(decoder, [[20], [21], [22]], [0, 1, 2])
    reordered = append(decoder, [[7], [8]], [2, 0])
    for row, tokens in enumerate(([9, 4, 1, 6, 22, 7], [9, 4, 3, 4, 20, 8])):
        decoder.set_input(0, AUDIO)
        close_to(append(decoder, [tokens])[0], reordered[row])


@pytest.mark.parametrize("timestamps", [True, False])
def test_run_ahead_is_single_steps(decoder: DecoderContext, timestamps: bool) -> None:
    def run(n_steps: int) -> tuple[list[int], list[float]]:
        decoder.set_input(0, AUDIO)
        decoder.set_input(3, rules(n_steps, 2, timestamps=timestamps))
        tokens: list[int] = []
        scores: list[float] = []
        new = [9, 4]
        while len(tokens) < 20 and (not tokens or tokens[-1] != EOT):
            append(decoder, [new])
            tokens += decoder.get_output(1)[0].tolist()
            scores += decoder.get_output(2)[0].tolist()
            new = tokens[-1:]
        return tokens, scores

    single = run(1)
    assert len(single[0]) == 20 and len(set(single[0])) > 3
    for n_steps in (2, 5, 20):
        assert run(n_steps) == single
    assert (single[0][0] >= T0) == timestamps
    assert all(score < 0 for score in single[1])


def test_run_ahead_of_several_sequences_is_each_alone(decoder: DecoderContext) -> None:
    prompts = [[9, 4], [8, 50], [30, 30]]
    decoder.set_input(3, rules(12, 2))
    append(decoder, prompts)
    together, scores = decoder.get_output(1), decoder.get_output(2)
    assert together.shape == scores.shape and together.dtype == np.int32 and together.flags.c_contiguous
    for row, prompt in enumerate(prompts):
        decoder.set_input(0, AUDIO)
        append(decoder, [prompt])
        alone = decoder.get_output(1)[0]
        ended = np.flatnonzero(alone == EOT)
        assert together[row, : len(alone)].tolist() == alone.tolist()
        close_to(scores[row, : len(alone)], decoder.get_output(2)[0])
        if len(ended):
            assert set(together[row, ended[0] :].tolist()) == {EOT} and not scores[row, ended[0] + 1 :].any()


def test_run_ahead_stops_at_the_end_of_text_and_of_the_cache(decoder: DecoderContext) -> None:
    everything = ints(20, 1, EOT, -1, -1, -1, DIMS.n_vocab - 1, 0, *(t for t in range(DIMS.n_vocab) if t != EOT))
    decoder.set_input(3, everything)
    append(decoder, [[9], [8]])
    assert decoder.get_output(1).tolist() == [[EOT], [EOT]]
    decoder.set_input(0, AUDIO)
    decoder.set_input(3, ints(99, 1, EOT, -1, -1, -1, 1, 0, EOT))
    append(decoder, [[9]])
    # 30 positions: the prompt's, 29 appended choices, and one more choice that has no place.
    assert decoder.get_output(1).shape == (1, DIMS.n_text_ctx)
    with pytest.raises(ValueError, match="text context"):
        append(decoder, [[9]])


def test_logits_are_raw_and_of_the_last_position(decoder: DecoderContext) -> None:
    raw = append(decoder, [[9, 4]])
    decoder.set_input(0, AUDIO)
    decoder.set_input(3, rules(1, 2))
    close_to(append(decoder, [[9, 4]]), raw)
    assert np.isfinite(raw).all() and raw.shape == (1, DIMS.n_vocab)
    decoder.set_input(0, AUDIO)
    decoder.set_input(3, rules(3, 2))
    after = append(decoder, [[9, 4]])
    first_two = decoder.get_output(1)[0, :2].tolist()
    decoder.set_input(0, AUDIO)
    decoder.set_input(3, rules(0, 2))
    close_to(append(decoder, [[9, 4, *first_two]]), after)


def test_setting_audio_starts_afresh(decoder: DecoderContext) -> None:
    first = append(decoder, [[9, 4]])
    assert np.abs(append(decoder, [[9, 4]]) - first).max() > 0.1
    decoder.set_input(0, AUDIO)
    with pytest.raises(ValueError, match="nothing is computed"):
        decoder.get_output(0)
    np.testing.assert_array_equal(append(decoder, [[9, 4]]), first)


def test_the_window_outlives_the_encoder_context(decoder: DecoderContext, encoder: EncoderContext, mel: Any) -> None:
    expected = append(decoder, [[9, 4]])
    decoder.set_input(0, AUDIO)
    encoder.set_input(0, -mel)
    encoder.compute()
    np.testing.assert_array_equal(append(decoder, [[9, 4]]), expected)
    decoder.set_input(0, AUDIO)
    assert np.abs(append(decoder, [[9, 4]]) - expected).max() > 1e-3
    encoder.close()
    append(decoder, [[5]])


@pytest.mark.parametrize(
    ("tokens", "origins", "message"),
    [
        ([[1], [2]], None, "no origins"),
        ([[1]], [0, 0], "2 origins for 1"),
        ([[1]], [1], "origin is not one of 1"),
        ([[1]], [-1], "origin is not one of 1"),
        ([list(range(29))], None, "text context"),
    ],
)
def test_a_refused_compute_changes_nothing(decoder: DecoderContext, tokens: Any, origins: Any, message: str) -> None:
    expected = append(decoder, [[9, 4, 5]])
    decoder.set_input(0, AUDIO)
    append(decoder, [[9, 4]])
    with pytest.raises(ValueError, match=message):
        append(decoder, tokens, origins)
    np.testing.assert_allclose(append(decoder, [[5]], [0]), expected, rtol=1e-4, atol=1e-4)


def test_decoder_refuses_computing_or_reading_too_early(decoder: DecoderContext) -> None:
    with pytest.raises(ValueError, match="tokens are not set"):
        decoder.compute()
    for index in range(5):
        with pytest.raises(ValueError, match="nothing is computed"):
            decoder.get_output(index)
    with pytest.raises(ValueError, match="an origin is not one of 0"):
        append(decoder, [[9]], [0])
    decoder.set_input(0, AUDIO)
    append(decoder, [[9]])
    for index, message in ((1, "no tokens were"), (2, "no tokens were"), (4, "rules are not set"), (5, "no output 5")):
        with pytest.raises(ValueError, match=message):
            decoder.get_output(index)
    with pytest.raises(ValueError, match="tokens are not set"):  # consumed
        decoder.compute()
    decoder.set_input(3, rules(1, 10))
    with pytest.raises(ValueError, match="sampling would begin at 10"):
        append(decoder, [[9]])


def test_only_computed_windows_of_this_model_are_attended(model: CpuModel, encoder: EncoderContext, mel: Any) -> None:
    uncomputed = model.encoder.init_execution_context({})
    closed = model.encoder.init_execution_context({})
    closed.set_input(0, mel)
    closed.compute()
    closed.close()
    other = CpuModel(CHECKPOINT)
    foreign = other.encoder.init_execution_context({})
    foreign.set_input(0, mel)
    foreign.compute()
    peers: dict[int, Any] = {1: uncomputed, 2: closed, 3: foreign, 4: object(), 5: encoder}
    context = model.decoder.init_execution_context(peers)
    peers[6] = context
    for handle in (0, 1, 2, 3, 4, 6, -1):
        with pytest.raises(ValueError, match=f"audio {handle} is no encoder context"):
            context.set_input(0, ints(handle))
    context.set_input(1, ints([9]))
    with pytest.raises(ValueError, match="audio is not set"):
        context.compute()
    other.close()
