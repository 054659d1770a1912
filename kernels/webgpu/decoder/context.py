"""The decoder's execution context: one guest's sequences over one encoder result, with their cache on the device."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels import inputs
from kernels.webgpu.cross_memory import CrossMemory
from kernels.webgpu.decoder.batch import Batch, Greedy
from kernels.webgpu.decoder.memory import Activations, DecoderBuffers
from kernels.webgpu.decoder.program import DecoderProgram, woven
from kernels.webgpu.decoder.state import MAX_ROWS, Row, state_words
from kernels.webgpu.pool import Pool
from kernels.webgpu.recording import Dispatch, Recording

Peers = Mapping[int, Any]


class DecoderContext(inputs.DecoderContext):
    """One guest's sequences over one encoder result."""

    def __init__(
        self,
        program: DecoderProgram,
        pool: Pool[DecoderBuffers],
        batch: Batch,
        cross_of: Callable[[Any], CrossMemory],
        heads: Sequence[tuple[int, int]],
        peers: Peers,
    ) -> None:
        super().__init__(program.dims, MAX_ROWS)
        self._pool, self._batch, self._cross_of, self._heads, self._peers = pool, batch, cross_of, heads, peers
        self._program, self._device = program, program.device
        self._cross: CrossMemory | None = None
        self._buffers: DecoderBuffers | None = None
        self._launches: dict[tuple[str, int], list[Dispatch]] = {}  # over its own buffers
        self._own: dict[tuple[int, int], list[list[Dispatch]]] = {}  # over the batch's, by first and number of rows
        self.histories: list[list[int]] = []  # each sequence's tokens in the cache
        # (sequences, n_text_ctx): the slot that holds a position's keys and values
        self._slots = np.zeros((0, 0), np.uint32)
        self._start = 0  # the first position of the last compute's tokens
        self._logits: NDArray[np.float32] | None = None
        self._has_x = False  # whether its own buffers hold the last position

    def _attend(self, handle: int) -> None:
        if handle not in self._peers:
            raise ValueError(f"audio {handle} isn't an encoder context of this instance")
        cross = self._cross_of(self._peers[handle]).hold()
        self._drop_audio()
        self._cross = cross
        self._inputs.forget()
        self.histories, self._computed = [], None
        self._chosen = self._log_probabilities = self._logits = None

    def _drop_audio(self) -> None:
        self._launches.clear()
        self._own.clear()
        if self._cross is not None:
            self._cross.release()
            self._cross = None

    def compute(self) -> None:
        """Append the tokens, then choose more if the rules request it. Raises ValueError for inconsistent inputs."""
        if self._cross is None:
            raise ValueError("audio is not set")
        length = len(self.histories[0]) if self.histories else 0
        tokens, given = self._inputs.take(len(self.histories), length)
        origins = list(range(len(tokens))) if given is None else given.tolist()
        self._chosen = self._log_probabilities = self._logits = None
        rules = self._inputs.rules
        if rules is None or rules.n_steps == 0:
            self._device.run(lambda: self._append(tokens, origins, length))
        else:
            greedy = Greedy(self, len(tokens), rules, lambda: self._begin(tokens, origins, length))
            self._chosen, self._log_probabilities = self._batch.run(greedy)

    def _append(self, tokens: NDArray[np.int32], origins: list[int], length: int) -> None:
        self._submit_pass(self._begin(tokens, origins, length))
        self._has_x = True

    def _begin(self, tokens: NDArray[np.int32], origins: list[int], length: int) -> list[Row]:
        """Compute all but the last position into the cache; return the last position's rows."""
        self._make_room(len(tokens))
        self._follow(origins, length)
        self._computed, self._start, self._has_x = tokens, length, False
        *before, last = self._passes()
        for rows in before:
            self._submit_pass(rows)
        for history, new in zip(self.histories, tokens, strict=True):
            history.extend(int(token) for token in new)
        return last

    def _make_room(self, n: int) -> None:
        """Take buffers with a slot for each of n sequences, and copy the cache over."""
        old = self._buffers
        if old is not None and old.capacity >= n:
            return
        new = self._buffers = self._pool.take(n)
        self._launches.clear()
        self._own.clear()
        slots = np.repeat(np.arange(new.capacity, dtype=np.uint32)[:, None], self._dims.n_text_ctx, axis=1)
        if old is not None:
            slots[: old.capacity] = self._slots
            r = Recording(self._device)
            n_bytes = old.capacity * self._dims.n_text_ctx * self._dims.n_text_state * 4
            for source, target in zip(old.keys + old.values, new.keys + new.values, strict=True):
                r.copy(source.view(0, n_bytes), target.view(0, n_bytes))
            self._device.submit(r)
            self._pool.give(old)
        self._slots = slots
        self._device.write(new.slots, slots)

    def _follow(self, origins: list[int], length: int) -> None:
        """Let sequence i continue cached sequence origins[i]: remaps slots, moves no keys or values."""
        assert self._buffers is not None
        if length and origins != list(range(len(self.histories))):
            self._slots[: len(origins), :length] = self._slots[origins, :length]
            self.histories = [list(self.histories[origin]) for origin in origins]
        elif not length:
            self.histories = [[] for _ in origins]
            own = np.arange(self._buffers.capacity, dtype=np.uint32)[:, None]
            if (self._slots == own).all():
                return
            self._slots[:] = own
        else:
            return
        self._device.write(self._buffers.slots, self._slots)

    def _passes(self) -> list[list[Row]]:
        """The last compute's tokens as rows by position, MAX_ROWS at a time; the last position separately."""
        assert self._computed is not None
        n, n_new = self._computed.shape
        rows = [Row(int(self._computed[s, p]), s, self._start + p) for p in range(n_new) for s in range(n)]
        before = rows[:-n]
        return [*(before[i : i + MAX_ROWS] for i in range(0, len(before), MAX_ROWS)), rows[-n:]]

    def own_launches(self, b: Activations, first_row: int) -> list[list[Dispatch]]:
        """Each layer's launches bound to this context, for its rows of the batch's buffers from first_row on."""
        assert self._buffers is not None and self._cross is not None
        n = len(self.histories)
        if (first_row, n) not in self._own:
            self._own[first_row, n] = self._program.own_launches(b, self._buffers, self._cross, first_row, n)
        return self._own[first_row, n]

    def _launch(self, what: str, n_rows: int) -> list[Dispatch]:
        """A part of a pass over its own buffers, recorded once for this audio."""
        assert self._buffers is not None and self._cross is not None
        if (what, n_rows) not in self._launches:
            b, program = self._buffers, self._program
            if what == "layers":
                own = program.own_launches(b, b, self._cross, 0, n_rows)
                made = woven([own], program.common_launches(b, n_rows))
            else:
                made = program.logits(b, n_rows) if what == "logits" else program.embed(b, n_rows)
            self._launches[what, n_rows] = made
        return self._launches[what, n_rows]

    def _record(self, n_rows: int, parts: Sequence[str]) -> Recording:
        recording = Recording(self._device)
        for part in parts:
            recording.steps.extend(self._launch(part, n_rows))
        return recording

    def _submit_pass(self, rows: Sequence[Row]) -> None:
        """Embed the rows and run the layers over them."""
        assert self._buffers is not None
        self._device.write(self._buffers.state, state_words(rows, self._dims.n_vocab))
        self._device.submit(self._record(len(rows), ("embed", "layers")))

    def _last_logits(self) -> NDArray[np.float32]:
        return self._device.run(self._read_logits)

    def _cross_attention(self) -> NDArray[np.float32]:
        return self._device.run(self._read_cross_attention)

    def _token_probabilities(self, eot: int) -> NDArray[np.float32]:
        return self._device.run(lambda: self._read_token_probabilities(eot))

    def _read_logits(self) -> NDArray[np.float32]:
        assert self._buffers is not None
        if self._logits is None:
            n, n_vocab = len(self.histories), self._dims.n_vocab
            if not self._has_x:  # the batch has moved on from it
                last = [Row(history[-1], slot, len(history) - 1) for slot, history in enumerate(self.histories)]
                self._submit_pass(last)
            [raw] = self._device.submit(
                self._record(n, ("logits",)), reads=[self._buffers.logits.view(0, 4 * n * n_vocab)]
            )
            self._logits = raw.view(np.float32).reshape(n, n_vocab)
        return self._logits

    def _again(self) -> Iterator[Sequence[Row]]:
        """Run the last compute's passes again, to read from each. They rewrite what the cache already holds."""
        self._read_logits()  # a pass overwrites what these are computed from
        for rows in self._passes():
            self._submit_pass(rows)
            yield rows

    def _read_cross_attention(self) -> NDArray[np.float32]:
        assert self._buffers is not None and self._cross is not None and self._computed is not None
        dims, heads = self._dims, self._heads
        n_audio, width = dims.n_audio_ctx, dims.n_text_state // dims.n_text_head
        keys = {layer: self._keys(layer) for layer in {layer for layer, _ in heads}}
        scores = np.empty((len(heads), self._computed.shape[1], n_audio), np.float32)
        for rows in self._again():
            queries = self._device.read(self._buffers.cross_query).reshape(dims.n_text_layer, MAX_ROWS, -1, width)
            for i, row in enumerate(rows):
                if row.slot == 0:
                    for at, (layer, head) in enumerate(heads):
                        scores[at, row.position - self._start] = queries[layer, i, head] @ keys[layer][head]
        return scores

    def _keys(self, layer: int) -> NDArray[np.float32]:
        """(n_text_head, head_dim, n_audio_ctx) of the cross-attention."""
        assert self._cross is not None
        dims, (keys, _, scales) = self._dims, self._cross.layers[layer]
        n_head, n_audio = dims.n_text_head, dims.n_audio_ctx
        integers = self._device.read(keys, np.int16).reshape(-1, n_audio, 8).transpose(0, 2, 1)
        scale = self._device.read(scales).reshape(2, n_head, 1, n_audio)[0]
        return np.asarray(integers.reshape(n_head, -1, n_audio) * scale)

    def _read_token_probabilities(self, eot: int) -> NDArray[np.float32]:
        assert self._buffers is not None and self._computed is not None
        n_vocab, (n, n_new) = self._dims.n_vocab, self._computed.shape
        result = np.full((n, n_new), np.nan, np.float32)
        logits = self._device.buffer(MAX_ROWS * 4 * n_vocab)
        partials = self._device.buffer(MAX_ROWS * self._program.partial_bytes)
        for rows in self._again():
            recording = Recording(self._device)
            recording.steps.extend(self._program.logits(self._buffers, len(rows), logits, partials))
            [raw] = self._device.submit(recording, reads=[logits.view(0, 4 * len(rows) * n_vocab)])
            all_logits: NDArray[np.float32] = raw.view(np.float32).reshape(-1, n_vocab)
            for row, values in zip(rows, all_logits, strict=True):
                at = row.position - self._start + 1
                if at < n_new:
                    token = int(self._computed[row.slot, at])
                    shares = np.exp(values[:eot] - values[:eot].max())
                    result[row.slot, at] = shares[token] / shares.sum() if token < eot else 0.0
        logits.close()
        partials.close()
        return result

    def close(self) -> None:
        """Return the buffers and release the encoder result. Idempotent."""
        self._is_closed = True
        self._drop_audio()
        buffers, self._buffers = self._buffers, None
        self._computed = None
        if buffers is not None:
            self._pool.give(buffers)
