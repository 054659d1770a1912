"""The CPU target's arithmetic in C: the checkpoint's weights where they lie, f16 or f32, sums in f32."""

import math
from ctypes import Array, Structure, addressof
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.checkpoints.load import Checkpoint
from kernels.cpu.arithmetic import Encoded
from kernels.cpu.cores import Cores, slices
from kernels.cpu.native_library import (
    FEW_ROWS,
    Block,
    Choice,
    Decoding,
    Encoding,
    Library,
    Matrix,
    Model,
    Norm,
    Product,
    Screening,
    Team,
)
from kernels.cpu.numpy_ops import Float
from kernels.rules import Int, Rules

MOST_LANES = 16  # vector.h's LANES, of any variant
DECODING_THREADS = 8  # a token's pieces are a few µs: more threads would wait for each other longer than they work


class NativeWhisper:
    """Arithmetic by the C kernels; see arithmetic.py. The checkpoint's file must stay as it is while this lives."""

    def __init__(self, checkpoint: Checkpoint, cores: Cores, library: Library) -> None:
        self._dims, self._cores, self._library = checkpoint.dims, cores, library
        self._weights = NativeWeights(checkpoint)
        self._model = addressof(self._weights.model)
        self._cross_floats = library.cross_floats(self._model)
        # Until the first token is chosen there is time.
        self._widest = cores.aside(lambda: self._screen(checkpoint))

    def _screen(self, checkpoint: Checkpoint) -> float:
        """Makes the token table in bytes, a scale for each row; the largest of these, or 0 where the file has it."""
        table = self._weights.model.token_embedding
        if table.scales:
            self._weights.model.screen = table
            return 0.0
        self._bytes = np.empty((table.n_out, table.n_in), np.int8)
        self._scales = np.zeros(table.n_out + MOST_LANES, np.float32)
        values, scales = self._bytes.ctypes.data, self._scales.ctypes.data
        self._run(self._library.screen, Screening(addressof(table), values, scales), 1)
        checkpoint.release_pages()  # of the table as it lies in the file some rows are read again, no more
        self._weights.model.screen = Matrix(values, None, table.n_out, table.n_in, 0, 0, scales)
        return float(self._scales.max())

    def encode(self, mel: Float) -> Encoded:
        dims = self._dims
        frames = np.zeros((2 * dims.n_audio_ctx + 2, dims.n_mels), np.float32)  # silence before and after, as padding
        frames[1:-1] = mel.T
        states = np.empty((dims.n_audio_ctx, dims.n_audio_state), np.float32)
        cross = np.empty((dims.n_text_layer, self._cross_floats), np.float32)
        n_threads = self._cores.count
        scratch = np.empty(self._library.encoder_floats(self._model, n_threads), np.float32)
        encoding = Encoding(self._model, *(array.ctypes.data for array in (frames, states, cross, scratch)))
        self._run(self._library.encode, encoding, n_threads)
        states.flags.writeable = False
        return Encoded(self, states, cross)

    def append(
        self, tokens: Int, encoded: Encoded, cache: Float, n_past: int, *, is_choosing: bool
    ) -> tuple[Float, list[Float], Float | None]:
        dims = self._dims
        n_sequences, n_new = tokens.shape
        rows, n_state = n_sequences * n_new, dims.n_text_state
        tokens = np.ascontiguousarray(tokens)
        hidden = np.empty((n_sequences, n_new, n_state), np.float32)
        queries = np.empty((dims.n_text_layer, dims.n_text_head, rows, n_state // dims.n_text_head), np.float32)
        is_screened = is_choosing and n_sequences <= FEW_ROWS
        if is_screened:
            self._widest.result()  # the table in bytes is there
        screened = np.empty((n_sequences, dims.n_vocab), np.float32) if is_screened else None
        n_threads = min(self._cores.count, DECODING_THREADS)
        scratch = np.empty(self._library.decoder_floats(self._model, rows, n_threads), np.float32)
        decoding = Decoding(
            *(self._model, encoded.cross.ctypes.data, cache.ctypes.data, tokens.ctypes.data),
            *(n_sequences, n_new, n_past, hidden.ctypes.data, None if screened is None else screened.ctypes.data),
            *(queries.ctypes.data, scratch.ctypes.data),
        )
        self._run(self._library.append, decoding, n_threads)
        return hidden, list(queries[:, :, :n_new]), screened

    def choose(
        self, last: Float, screened: Float | None, rules: Rules, sequences: list[list[int]]
    ) -> tuple[list[int], list[float]]:
        n_vocab = self._dims.n_vocab
        last = np.ascontiguousarray(last)
        logits = self.logits(last, n_vocab) if screened is None else screened
        widest = 0.0 if screened is None else self._widest.result()
        begin = rules.timestamp_begin if rules.timestamp_begin >= 0 else n_vocab
        chosen: list[int] = []
        log_probabilities: list[float] = []
        for hidden, row, sequence in zip(last, logits, sequences, strict=True):
            allowed = rules.next_tokens(sequence, n_vocab)
            if allowed.has_ended:
                chosen.append(rules.eot)
                log_probabilities.append(0.0)
                continue
            never = rules.never(allowed.is_first)
            near = np.empty(n_vocab, np.int32)
            choice = Choice(
                *(self._model, hidden.ctypes.data, row.ctypes.data, never.ctypes.data, near.ctypes.data),
                *(len(never), allowed.text_from, begin, allowed.time_from, allowed.time_below, widest),
            )
            self._library.choose(addressof(choice))
            token, log_probability = _likeliest(choice)
            chosen.append(token)
            log_probabilities.append(log_probability)
        return chosen, log_probabilities

    def logits(self, hidden: Float, n_vocab: int) -> Float:
        hidden = np.ascontiguousarray(hidden)
        n_state = hidden.shape[1]
        result = np.empty((len(hidden), n_vocab), np.float32)
        whole = self._weights.model.token_embedding
        embedding = Matrix(whole.values, None, n_vocab, n_state, whole.is_half, 0, whole.scales)
        # A few rows at a time: for more the vocabulary would be copied, which takes more memory than all weights.
        for some in slices(len(hidden), FEW_ROWS):
            x, y = hidden[some], result[some]
            product = Product(
                *(x.ctypes.data, len(x), n_state, None, addressof(embedding), 1.0, 0),
                *(y.ctypes.data, n_vocab, 0, n_vocab, None, None, 0),
            )
            self._run(self._library.multiply, product, min(self._cores.count, DECODING_THREADS))
        return result

    def cross_keys(self, encoded: Encoded, layer: int, head: int) -> Float:
        return panels(self._library, encoded.cross[layer], self._dims.n_text_head, self._dims.n_audio_ctx, head)

    def _run(self, function: Any, arguments: Structure, n_threads: int) -> None:
        run(self._library, self._cores, function, arguments, n_threads)


def _likeliest(choice: Choice) -> tuple[int, float]:
    """A timestamp where they are together likelier than any one text token, else that; and its log-probability."""
    text, time = choice.text, choice.time
    if time.token >= 0 and (text.token < 0 or time.logit + math.log(time.sum) > text.logit):
        return time.token, -math.log(time.sum)
    if text.token < 0:
        raise ValueError("the rules leave no token to choose")
    others = time.sum * math.exp(time.logit - text.logit) if time.token >= 0 else 0.0
    return text.token, -math.log(text.sum + others)


def run(library: Library, cores: Cores, function: Any, arguments: Structure, n_threads: int) -> None:
    """Calls a C function in this thread, with the help of others that are free."""
    team = Team(n_threads=n_threads)
    address = addressof(team)

    def end() -> None:
        team.over = 1

    cores.lead(lambda: function(address, addressof(arguments)), lambda: library.help(address), n_threads, end)


def panels(library: Library, packed: Float, n_head: int, n_keys: int, head: int) -> Float:
    """One head's keys (n_keys, d) out of panels [n_head][n_panels][d][lanes], which may be followed by other things."""
    wide = library.packed_floats(n_keys, 1)  # n_keys and what fills the last panel
    lanes = library.packed_floats(1, 1)
    d = len(packed) // ((wide + n_keys) * n_head)
    keys = packed[head * wide * d : (head + 1) * wide * d].reshape(-1, d, lanes)
    rows: Float = keys.transpose(0, 2, 1).reshape(wide, d)[:n_keys]
    return rows


class NativeWeights:
    """`model`: the weights as the C kernels read them. What has to be changed for that is copied; the rest is not."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._kept: list[NDArray[Any] | Array[Block]] = []  # all that `model` points to
        self._arrays, dims, self._release = checkpoint.arrays, checkpoint.dims, checkpoint.release_copied
        self.model = Model(
            *(dims.n_mels, dims.n_audio_ctx, dims.n_text_state, dims.n_audio_head, dims.n_audio_layer),
            *(dims.n_vocab, dims.n_text_ctx, dims.n_text_head, dims.n_text_layer, 0),
            *(self._convolution("encoder.conv1"), self._convolution("encoder.conv2")),
            self._f32(self._arrays["encoder.positional_embedding"]),
            self._blocks("encoder", dims.n_audio_layer, ("attn",)),
            self._norm("encoder.ln_post"),
            self._token_embedding(checkpoint, "decoder.token_embedding.weight"),
            Matrix(),
            self._f32(self._arrays["decoder.positional_embedding"]),
            self._blocks("decoder", dims.n_text_layer, ("attn", "cross_attn")),
            self._norm("decoder.ln"),
        )

    def _address(self, array: NDArray[Any]) -> int:
        self._kept.append(array)
        return array.ctypes.data

    def _f32(self, array: NDArray[Any]) -> int:
        return self._address(np.ascontiguousarray(array, np.float32))

    def _norm(self, name: str) -> Norm:
        return Norm(self._f32(self._arrays[f"{name}.weight"]), self._f32(self._arrays[f"{name}.bias"]))

    def _matrix(self, weight: NDArray[Any], bias: NDArray[Any] | None) -> Matrix:
        """[n_out, n_in] f16 as it is; anything else as f32."""
        is_half = weight.dtype == np.float16
        weight = np.ascontiguousarray(weight, np.float16 if is_half else np.float32)
        return Matrix(self._address(weight), None if bias is None else self._f32(bias), *weight.shape, is_half)

    def _token_embedding(self, checkpoint: Checkpoint, name: str) -> Matrix:
        """int8 with a scale for each row as it is; anything else as any matrix."""
        table = checkpoint.bytes_of(name)
        if table is None:
            return self._matrix(self._arrays[name], None)
        scales = np.zeros(len(table.scales) + MOST_LANES, np.float32)
        scales[: len(table.scales)] = table.scales[:, 0]
        values = np.ascontiguousarray(table.values)
        return Matrix(self._address(values), None, *values.shape, 0, 0, self._address(scales))

    def _linear(self, name: str) -> Matrix:
        return self._matrix(self._arrays[f"{name}.weight"], self._arrays.get(f"{name}.bias"))  # keys have no bias

    def _convolution(self, name: str) -> Matrix:
        """[n_out, n_in, 3] → [n_out, 3 · n_in], as three frames lie after each other."""
        weight = self._arrays[f"{name}.weight"].transpose(0, 2, 1)
        return self._matrix(weight.reshape(len(weight), -1), self._arrays[f"{name}.bias"])

    def _blocks(self, half: str, n_layer: int, attentions: tuple[str, ...]) -> int:
        blocks = (Block * n_layer)()
        for layer, block in enumerate(blocks):
            name = f"{half}.blocks.{layer}"
            for attention in attentions:
                prefix = attention.removesuffix("attn")
                setattr(block, f"{attention}_ln", self._norm(f"{name}.{attention}_ln"))
                for part in ("query", "key", "value", "out"):
                    setattr(block, prefix + part, self._linear(f"{name}.{attention}.{part}"))
            block.mlp_ln = self._norm(f"{name}.mlp_ln")
            block.mlp_up, block.mlp_down = self._linear(f"{name}.mlp.0"), self._linear(f"{name}.mlp.2")
            self._release()
        self._kept.append(blocks)
        return addressof(blocks)
