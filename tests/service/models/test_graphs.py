"""The tokenizer, zlib and speech graphs, as a guest meets them through the calls of WASI-NN."""

import zlib
from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from service.guest.wasi_nn import ExecutionContext, Graph
from service.models.graphs import SpeechGraph, TokenizerGraph, ZlibGraph
from service.models.tokenizer import Tokenizer
from tests.support.synthetic import SENTENCE, save_synthetic

NO_PEERS: Mapping[int, ExecutionContext] = {}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = save_synthetic(tmp_path_factory.mktemp("model"))
    return Tokenizer((folder / "tokenizer.json").read_text(), 420, is_multilingual=False)


def utf8(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), np.uint8)


def test_text_to_ids_and_back(tokenizer: Tokenizer) -> None:
    graph: Graph = TokenizerGraph(tokenizer)
    context: ExecutionContext = graph.init_execution_context(NO_PEERS)
    context.set_input(0, utf8(" " + SENTENCE))
    context.compute()
    ids = context.get_output(0)
    assert ids.dtype == np.int32 and ids.shape == (3,) and ids.flags.c_contiguous
    context.set_input(0, np.concatenate([[tokenizer.special["sot"], tokenizer.timestamp_begin], ids]).astype(np.int32))
    context.compute()
    assert context.get_output(0).tobytes().decode() == " " + SENTENCE


def test_the_size_that_zlib_gives() -> None:
    context: ExecutionContext = ZlibGraph().init_execution_context(NO_PEERS)
    for text in ("", SENTENCE, 50 * SENTENCE):
        context.set_input(0, utf8(text))
        context.compute()
        assert context.get_output(0).tolist() == [len(zlib.compress(text.encode()))]
    for tensor in (np.zeros(3, np.int32), np.zeros((1, 3), np.uint8)):
        with pytest.raises(ValueError, match="u8"):
            context.set_input(0, tensor)


def test_text_that_is_no_utf8_is_replaced(tokenizer: Tokenizer) -> None:
    context = TokenizerGraph(tokenizer).init_execution_context(NO_PEERS)
    context.set_input(0, np.array([0x20, 0xFF], np.uint8))
    context.compute()
    context.set_input(0, context.get_output(0))
    context.compute()
    assert context.get_output(0).tobytes() == " \N{REPLACEMENT CHARACTER}".encode()


def test_nothing_gives_nothing(tokenizer: Tokenizer) -> None:
    context = TokenizerGraph(tokenizer).init_execution_context(NO_PEERS)
    for empty, other in ((np.uint8, np.int32), (np.int32, np.uint8)):
        context.set_input(0, np.zeros(0, empty))
        context.compute()
        assert context.get_output(0).dtype == other and context.get_output(0).size == 0


@pytest.mark.parametrize(
    "tensor",
    [np.zeros((1, 3), np.int32), np.zeros(3, np.int64), np.zeros(3, np.float32), np.zeros((), np.uint8)],
    ids=lambda tensor: f"{tensor.dtype}{tensor.shape}",
)
def test_the_tokenizer_refuses_other_tensors(tokenizer: Tokenizer, tensor: NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match="expected i32 or u8 of one dimension"):
        TokenizerGraph(tokenizer).init_execution_context(NO_PEERS).set_input(0, tensor)


@pytest.mark.parametrize("token", [-1, 420])
def test_ids_outside_the_vocabulary_are_the_guests_mistake(tokenizer: Tokenizer, token: int) -> None:
    context = TokenizerGraph(tokenizer).init_execution_context(NO_PEERS)
    context.set_input(0, np.array([token], np.int32))
    with pytest.raises(ValueError, match=f"token {token}"):
        context.compute()
    with pytest.raises(ValueError, match="nothing is computed"):
        context.get_output(0)


def describe(samples: NDArray[np.float32]) -> str:
    return f"{samples.shape[0]} samples, the loudest {samples.max():.1f} – naïve"


def test_speech_to_text_in_one_step() -> None:
    graph: Graph = SpeechGraph(describe)
    context: ExecutionContext = graph.init_execution_context(NO_PEERS)
    for n in (5, 7):  # a context used again answers again
        context.set_input(0, np.full((1, n), 0.5, np.float32))
        context.compute()
        assert context.get_output(0).tobytes().decode() == f"{n} samples, the loudest 0.5 – naïve"
        assert context.get_output(0).dtype == np.uint8


@pytest.mark.parametrize(
    "tensor",
    [
        np.zeros(16, np.float32),
        np.zeros((2, 16), np.float32),
        np.zeros((1, 16), np.float64),
        np.zeros((1, 16), np.uint8),
        np.full((1, 16), np.nan, np.float32),
        np.full((1, 16), np.inf, np.float32),
    ],
    ids=lambda tensor: f"{tensor.dtype}{tensor.shape}{tensor.flat[0]}",
)
def test_speech_must_be_one_row_of_finite_samples(tensor: NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match=r"expected f32 \[1, n_samples\]|finite"):
        SpeechGraph(describe).init_execution_context(NO_PEERS).set_input(0, tensor)


def test_a_failing_transcription_is_no_stale_result() -> None:
    def first_only(samples: NDArray[np.float32]) -> str:
        if samples.shape[0] > 1:
            raise RuntimeError("the guest trapped")
        return "one"

    context = SpeechGraph(first_only).init_execution_context(NO_PEERS)
    context.set_input(0, np.zeros((1, 1), np.float32))
    context.compute()
    context.set_input(0, np.zeros((1, 2), np.float32))
    with pytest.raises(RuntimeError, match="the guest trapped"):
        context.compute()
    with pytest.raises(ValueError, match="nothing is computed"):
        context.get_output(0)


def test_misuse_is_refused(tokenizer: Tokenizer) -> None:
    context = TokenizerGraph(tokenizer).init_execution_context(NO_PEERS)
    with pytest.raises(ValueError, match="input 0 is not set"):
        context.compute()
    with pytest.raises(ValueError, match="only input 0 exists, not 1"):
        context.set_input(1, utf8("a"))
    context.set_input(0, utf8("a"))
    with pytest.raises(ValueError, match="nothing is computed"):
        context.get_output(0)
    context.compute()
    with pytest.raises(ValueError, match="output 1 does not exist"):
        context.get_output(1)
    context.close()
    context.close()
    with pytest.raises(ValueError, match="input 0 is not set"):
        context.compute()


def test_contexts_do_not_share_their_tensors(tokenizer: Tokenizer) -> None:
    graph = TokenizerGraph(tokenizer)
    one, other = graph.init_execution_context(NO_PEERS), graph.init_execution_context(NO_PEERS)
    one.set_input(0, utf8(" Ask"))
    with pytest.raises(ValueError, match="input 0 is not set"):
        other.compute()
