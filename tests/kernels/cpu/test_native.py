"""The C kernels against float64 over odd sizes, each instruction set this processor has, and the models they make."""

import ctypes
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.checkpoints.load import Checkpoint
from kernels.checkpoints.quantised import Dequantised, quantise_coarsely
from kernels.cpu import native_library
from kernels.cpu.cores import Cores
from kernels.cpu.model import CpuModel
from kernels.cpu.native_kernels import NativeWhisper, run
from kernels.cpu.native_library import FEW_ROWS, Library, Matrix, Norm, Product, Screening, WindowAttention, variants
from kernels.cpu.numpy_kernels import NumpyWhisper
from kernels.rules import Rules
from tests.support import rule_cases
from tests.support.plain_whisper import PlainWhisper
from tests.support.rule_cases import RuleCase, each_rule_case
from tests.support.small_whisper import AUDIO, CHECKPOINT, DIMS, append, close_to, random_checkpoint

STORE, GELU, ADD = range(3)
rng = np.random.default_rng(0)
pytestmark = pytest.mark.skipif(not variants(), reason="the C kernels are for x86-64 Linux with AVX2")


def normal(*shape: int) -> NDArray[np.float32]:
    return rng.standard_normal(shape, dtype=np.float32)


@pytest.fixture(params=variants())
def library(request: pytest.FixtureRequest) -> Library:
    return Library(request.param)


def multiply(library: Library, cores: Cores, x: Any, weight: Any, bias: Any, y: Any, **wanted: Any) -> None:
    """y = then(scale · (x · weightᵀ + bias)), each row of y split into heads of `head` columns."""
    n_out, n_in = weight.shape
    norm = wanted.get("norm")
    head = wanted.get("head", n_out)
    matrix = Matrix(weight.ctypes.data, None if bias is None else bias.ctypes.data, n_out, n_in, weight.itemsize == 2)
    norms = None if norm is None else ctypes.addressof(norm)
    packed = np.empty(library.packed_floats(n_out, n_in), np.float32)
    threads = np.empty((cores.count, 96 * n_in), np.float32)
    product = Product(
        *(x.ctypes.data, len(x), n_in, norms, ctypes.addressof(matrix), wanted.get("scale", 1.0)),
        *(wanted.get("then", STORE), y.ctypes.data, head, len(x) * head, head),
        *(packed.ctypes.data, threads.ctypes.data, 96 * n_in),
    )
    run(library, cores, library.multiply, product, cores.count)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(("n_out", "n_in"), [(1, 1), (5, 129), (1152, 384), (77, 24)])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 13, FEW_ROWS, FEW_ROWS + 1, 150])
def test_products(library: Library, rows: int, n_out: int, n_in: int, dtype: Any) -> None:
    cores = Cores()
    x, weight, bias = normal(rows, n_in), normal(n_out, n_in).astype(dtype), normal(n_out)
    y = np.empty((rows, n_out), np.float32)
    multiply(library, cores, x, weight, bias, y)
    exact = x.astype(float) @ weight.astype(float).T + bias
    np.testing.assert_allclose(y, exact, rtol=2e-5, atol=2e-5 * n_in**0.5)
    multiply(library, cores, x, weight, None, y, then=ADD, scale=0.5)
    np.testing.assert_allclose(y, exact + (exact - bias) / 2, rtol=4e-5, atol=4e-5 * n_in**0.5)
    cores.close()


@pytest.mark.parametrize("rows", [1, 9, 200])
@pytest.mark.parametrize(("n_in", "head"), [(24, 8), (384, 64), (65, 5)])
def test_products_of_normed_rows_split_into_heads(library: Library, rows: int, n_in: int, head: int) -> None:
    cores = Cores()
    x, weight, bias = 3 * normal(rows, n_in) + 5, normal(6 * head, n_in), normal(6 * head)
    scale, shift = normal(n_in), normal(n_in)
    wide = x.astype(float)
    normed = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5) * scale + shift
    exact = (normed @ weight.astype(float).T + bias).reshape(rows, 6, head).transpose(1, 0, 2)
    y = np.empty((6, rows, head), np.float32)
    norm = Norm(scale.ctypes.data, shift.ctypes.data)
    multiply(library, cores, x, weight, bias, y, norm=norm, head=head)
    np.testing.assert_allclose(y, exact, rtol=2e-5, atol=5e-5 * n_in**0.5)
    cores.close()


def test_gelu_is_exact_to_rounding(library: Library) -> None:
    cores = Cores()
    x = np.concatenate([np.linspace(-12, 12, 20_001), [0, -0.0, 1e-30, -1e-30, 1e4, -1e4]]).astype(np.float32)
    y = np.empty((len(x), 16), np.float32)
    multiply(library, cores, x[:, None].copy(), np.ones((16, 1), np.float32), None, y, then=GELU)
    exact = np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x.astype(float)])
    np.testing.assert_allclose(y[:, 3], exact, rtol=3e-7, atol=1e-7)
    cores.close()


@pytest.mark.parametrize("spread", [0.1, 30.0])
@pytest.mark.parametrize(("n_head", "d"), [(1, 8), (3, 64), (2, 40)])
@pytest.mark.parametrize(("rows", "n_keys"), [(1, 1), (3, 129), (150, 1500)])
def test_attention_over_a_window(library: Library, rows: int, n_keys: int, n_head: int, d: int, spread: float) -> None:
    cores = Cores()
    q, keys, values = spread * normal(n_head, rows, d), normal(n_head, n_keys, d), normal(n_head, n_keys, d)
    lanes = library.packed_floats(1, 1)
    wide = -(-n_keys // lanes) * lanes
    padded = np.zeros((n_head, wide, d), np.float32)
    padded[:, :n_keys] = keys
    packed = np.ascontiguousarray(padded.reshape(n_head, -1, lanes, d).swapaxes(2, 3))
    y = np.empty((rows, n_head, d), np.float32)
    scores = np.empty((cores.count, 48 * wide), np.float32)
    attention = WindowAttention(
        *(q.ctypes.data, packed.ctypes.data, values.ctypes.data, y.ctypes.data),
        *(rows, rows * d, n_keys, n_head, d, scores.ctypes.data, 48 * wide),
    )
    run(library, cores, library.attend_window, attention, cores.count)
    weights = q.astype(float) @ keys.astype(float).swapaxes(1, 2)
    weights = np.exp(weights - weights.max(-1, keepdims=True))
    exact = (weights @ values / weights.sum(-1, keepdims=True)).swapaxes(0, 1)
    np.testing.assert_allclose(y, exact, rtol=2e-5, atol=2e-5 * (1 + spread))
    cores.close()


def test_a_library_of_another_layout_is_refused(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_library, "STRUCTURES", native_library.STRUCTURES[::-1])
    with pytest.raises(RuntimeError, match="make native"):
        Library(library.variant)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(("n_out", "n_in"), [(1, 1), (5, 129), (1153, 384), (77, 24)])
def test_bytes_and_their_products(library: Library, n_out: int, n_in: int, dtype: Any) -> None:
    """Each byte is its weight to half a scale, and few rows are multiplied by bytes as by floats."""
    cores = Cores()
    weight = normal(n_out, n_in).astype(dtype)
    weight[-1] = 0
    values, scales = np.empty((n_out, n_in), np.int8), np.zeros(n_out + 16, np.float32)
    table = Matrix(weight.ctypes.data, None, n_out, n_in, weight.itemsize == 2)
    screening = Screening(ctypes.addressof(table), values.ctypes.data, scales.ctypes.data)
    run(library, cores, library.screen, screening, cores.count)
    stands_for = values * scales[:n_out, None].astype(float)
    np.testing.assert_allclose(stands_for, weight.astype(float), rtol=0, atol=0.501 * float(scales.max()))
    assert not values[-1].any() and (n_out == 1 or np.abs(values[:-1]).max(-1).tolist() == [127] * (n_out - 1))
    for rows in (1, 3, 8, FEW_ROWS):
        x, y = normal(rows, n_in), np.empty((rows, n_out), np.float32)
        matrix = Matrix(values.ctypes.data, None, n_out, n_in, 0, 0, scales.ctypes.data)
        product = Product(
            *(x.ctypes.data, rows, n_in, None, ctypes.addressof(matrix), 1.0, STORE),
            *(y.ctypes.data, n_out, 0, n_out, None, None, 0),
        )
        run(library, cores, library.multiply, product, cores.count)
        np.testing.assert_allclose(y, x.astype(float) @ stands_for.T, rtol=2e-5, atol=2e-5 * n_in**0.5)
    cores.close()


# A vocabulary so large that most logits are far from the best: text below 3000, timestamps from 3500 on.
WIDE = replace(DIMS, n_vocab=4003)
WIDE_EOT, WIDE_T0 = 3000, 3500


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("timestamp_begin", [WIDE_T0, -1])
def test_choices_are_numpys_though_screened(library: Library, dtype: Any, timestamp_begin: int) -> None:
    arrays = {name: array.astype(dtype) for name, array in CHECKPOINT.arrays.items()}
    arrays["decoder.token_embedding.weight"] = 2 * normal(WIDE.n_vocab, WIDE.n_text_state).astype(dtype)
    checkpoint = Checkpoint(WIDE, arrays, "{}", CHECKPOINT.alignment_heads, False)
    native, numpy = NativeWhisper(checkpoint, Cores(), library), NumpyWhisper(checkpoint, Cores())
    suppress, first = (rng.choice(WIDE_EOT, n).astype(np.int32) for n in (900, 40))
    rules = Rules(1, 2, WIDE_EOT, timestamp_begin, 3001, 50, suppress, first)
    mel = normal(WIDE.n_mels, 2 * WIDE.n_audio_ctx)
    encoded = native.encode(mel), numpy.encode(mel)
    shape = (WIDE.n_text_layer, 2, 1, WIDE.n_text_head, WIDE.n_text_ctx, WIDE.n_text_state // WIDE.n_text_head)
    n_coarse = 0
    for sampled in ([], [WIDE_T0], [WIDE_T0, 5], [WIDE_T0, 5, 3600], [WIDE_T0, 5, 3600, 3600], [5, 6, 7]):
        for token in range(8):
            sequence = [7, token, *sampled]
            tokens = np.array([sequence], np.int32)
            hidden, _, screened = native.append(tokens, encoded[0], np.zeros(shape, np.float32), 0, is_choosing=True)
            assert screened is not None
            exact = native.logits(hidden[:, -1], WIDE.n_vocab)
            n_coarse += int(np.abs(screened - exact).max() > 1e-3)
            found, score = native.choose(hidden[:, -1], screened, rules, [sequence])
            expected, expected_score = rules.choose(exact.copy(), [sequence])
            assert found == expected
            np.testing.assert_allclose(score, expected_score, atol=1e-4)
            np.testing.assert_allclose(screened[0, found], exact[0, found], rtol=1e-6)
            hidden, _, nothing = numpy.append(tokens, encoded[1], np.zeros(shape, np.float32), 0, is_choosing=True)
            assert numpy.choose(hidden[:, -1], nothing, rules, [sequence])[0] == expected
    assert n_coarse == 48  # bytes alone are not exact


@pytest.fixture(scope="module")
def repeating() -> Checkpoint:
    """Its logits are the hidden state itself."""
    dims = replace(DIMS, n_vocab=rule_cases.N_VOCAB, n_text_state=64, n_audio_state=64, n_audio_head=2)
    made = random_checkpoint(dims)
    table = np.eye(dims.n_vocab, dims.n_text_state, dtype=np.float16)
    return replace(made, arrays={**made.arrays, "decoder.token_embedding.weight": table})


@each_rule_case
def test_each_case_of_the_rules(library: Library, repeating: Checkpoint, case: RuleCase) -> None:
    """By logits as they are and by screened ones, which are made exact."""
    native, logits = NativeWhisper(repeating, Cores(), library), case.logits[None]
    hidden = np.pad(logits, [(0, 0), (0, repeating.dims.n_text_state - rule_cases.N_VOCAB)])
    for screened in (None, logits + np.float32(0.01) * normal(*logits.shape)):
        history = [[rule_cases.PROMPT, *case.sampled]]
        if case.chosen is None:
            with pytest.raises(ValueError, match="no token"):
                native.choose(hidden, screened, case.rules, history)
        else:
            assert native.choose(hidden, screened, case.rules, history)[0] == [case.chosen]


def test_nothing_is_chosen_where_nothing_is_a_number(library: Library) -> None:
    native, nothing = NativeWhisper(CHECKPOINT, Cores(), library), np.zeros(0, np.int32)
    hidden, logits = (np.full((1, n), np.nan, np.float32) for n in (DIMS.n_text_state, DIMS.n_vocab))
    with pytest.raises(ValueError, match="no token"):
        native.choose(hidden, logits, Rules(1, 1, 40, -1, -1, -1, nothing, nothing), [[9]])


def test_a_choice_waits_for_the_table_in_bytes(library: Library) -> None:
    cores, may_go_on = Cores(), Event()
    for _ in range(max(1, cores.count - 1)):
        cores.aside(may_go_on.wait)
    native, nothing = NativeWhisper(CHECKPOINT, cores, library), np.zeros(0, np.int32)
    rules = Rules(1, 1, 40, -1, -1, -1, nothing, nothing)
    hidden, logits = normal(1, DIMS.n_text_state), normal(1, DIMS.n_vocab)
    with ThreadPoolExecutor(1) as thread:
        chosen = thread.submit(native.choose, hidden, logits, rules, [[9]])
        try:
            with pytest.raises(TimeoutError):
                chosen.result(timeout=0.2)
        finally:
            may_go_on.set()
        assert len(chosen.result()[0]) == 1
    cores.close()


def test_a_token_embedding_in_bytes_is_read_where_it_lies(library: Library) -> None:
    """The same logits and choices as of its floats, from the table itself instead of two copies."""
    name = "decoder.token_embedding.weight"
    table = quantise_coarsely(CHECKPOINT.arrays[name])
    stored = Checkpoint(DIMS, Dequantised({**CHECKPOINT.arrays, name: table}), "{}", CHECKPOINT.alignment_heads, False)
    plain = replace(CHECKPOINT, arrays={**CHECKPOINT.arrays, name: table.dequantise()})
    mel = np.random.default_rng(1).standard_normal((DIMS.n_mels, 2 * DIMS.n_audio_ctx), dtype=np.float32)
    n_beams, some = 3, np.zeros(0, np.int32)
    cache = np.zeros((DIMS.n_text_layer, 2, n_beams, DIMS.n_text_ctx * DIMS.n_text_state), np.float32)
    tokens = rng.integers(0, DIMS.n_vocab, (n_beams, 4)).astype(np.int32)
    found = []
    for checkpoint in (stored, plain):
        native = NativeWhisper(checkpoint, Cores(), library)
        hidden, _, screened = native.append(tokens, native.encode(mel), cache.copy(), 0, is_choosing=True)
        chosen = native.choose(hidden[:, -1], screened, Rules(1, 4, 40, -1, -1, -1, some, some), tokens.tolist())
        found.append((native.logits(hidden[:, -1], DIMS.n_vocab), *chosen))
        used = native._weights.model.token_embedding.values
        assert (used == table.values.ctypes.data) == (checkpoint is stored)
    close_to(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    np.testing.assert_allclose(found[0][2], found[1][2], atol=0.01)


@pytest.mark.parametrize("n_new", [1, 4, 29])
def test_models_are_a_plain_whisper(library: Library, n_new: int) -> None:
    """f16 weights as they lie and f32 ones, prompts of few rows and of many."""
    mel = np.random.default_rng(1).standard_normal((1, DIMS.n_mels, 2 * DIMS.n_audio_ctx), dtype=np.float32)
    plain = PlainWhisper(CHECKPOINT)
    states = plain.encode(mel[0])
    tokens = rng.integers(0, DIMS.n_vocab, n_new).tolist()
    for dtype in (np.float16, np.float32):
        arrays = {name: array.astype(dtype) for name, array in CHECKPOINT.arrays.items()}
        model = CpuModel(type(CHECKPOINT)(DIMS, arrays, "{}", CHECKPOINT.alignment_heads, False), library)
        assert model.kernels == library.variant
        encoder = model.encoder.init_execution_context({})
        encoder.set_input(0, mel)
        encoder.compute()
        close_to(encoder.get_output(0)[0], states)
        decoder = model.decoder.init_execution_context({7: encoder})
        decoder.set_input(0, AUDIO)
        close_to(append(decoder, [tokens]), plain.decode(tokens, states)[0][-1:])
        model.close()


def test_more_mel_bands_than_the_rest_of_the_model_is_wide(library: Library) -> None:
    dims = replace(DIMS, n_mels=600)
    arrays = dict(CHECKPOINT.arrays)
    arrays["encoder.conv1.weight"] = normal(DIMS.n_audio_state, dims.n_mels, 3) / 40
    checkpoint = Checkpoint(dims, arrays, "{}", CHECKPOINT.alignment_heads, False)
    native, numpy = NativeWhisper(checkpoint, Cores(), library), NumpyWhisper(checkpoint, Cores())
    mel = normal(dims.n_mels, 2 * dims.n_audio_ctx)
    close_to(native.encode(mel).audio_states, numpy.encode(mel).audio_states)


def test_windows_that_end_in_silence_are_encoded_as_any_other(library: Library) -> None:
    """However many of the last frames are all alike, of which the convolutions compute one."""
    native, numpy = NativeWhisper(CHECKPOINT, Cores(), library), NumpyWhisper(CHECKPOINT, Cores())
    n_frames = 2 * DIMS.n_audio_ctx
    for first in (0, 1, 2, 3, n_frames // 2, n_frames // 2 + 1, *range(n_frames - 7, n_frames)):
        mel = normal(DIMS.n_mels, n_frames)
        mel[:, first:] = mel[:, first:][:, :1]
        close_to(native.encode(mel).audio_states, numpy.encode(mel).audio_states)


def test_without_the_library_numpy_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    native_library.load_library.cache_clear()
    try:
        assert CpuModel(CHECKPOINT).kernels == "NumPy"
    finally:
        native_library.load_library.cache_clear()
