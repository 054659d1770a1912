"""Runs greedy steps of several contexts as one batch: the weights are read once for all.

Contexts that wait at the same time share rounds of a few steps, and join and leave between rounds, so none waits for
another's end, and a single one waits for nothing. Each keeps its own cache, position, rules and encoder result, and
chooses the same tokens as alone. Only contexts whose rules suppress the same tokens share a round.
"""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kernels.rules import Rules
from kernels.webgpu.decoder.memory import Activations
from kernels.webgpu.decoder.program import DecoderProgram, woven
from kernels.webgpu.decoder.state import MAX_ROWS, STATE, Row, mask_words, state_words
from kernels.webgpu.recording import Dispatch, Recording

SHARED_STEPS = 4  # maximum steps per round with others, so that a context that returns after a chunk can join soon
Chosen = tuple[NDArray[np.int32], NDArray[np.float32]]


class Member(Protocol):
    """A context, as the batch needs it."""

    @property
    def histories(self) -> list[list[int]]:
        """Each sequence's tokens. All but the last are in the cache."""

    def own_launches(self, b: Activations, first_row: int) -> list[list[Dispatch]]:
        """Of each layer, the launches bound to this context, for its rows from first_row on."""


class Greedy:
    """One context's run of up to `rules.n_steps` steps.

    `begin` is called once, on the device's thread, and brings all but the last position into the cache. `result` is
    (chosen, log-probabilities), each (n_sequences, n_chosen), or the failure; the histories then hold all but the last.
    """

    def __init__(self, member: Member, n_sequences: int, rules: Rules, begin: Callable[[], object]) -> None:
        self.member, self.n_sequences, self.rules, self.begin = member, n_sequences, rules, begin
        self.result: Future[Chosen] = Future()
        self.n_left = rules.n_steps
        self._rounds: list[NDArray[np.uint32]] = []

    def take(self, chosen: NDArray[np.uint32]) -> None:
        """Add a round's (n_steps, n_sequences, 2) tokens and log-probability bits. Sets the result at the end."""
        all_ended = (chosen[:, :, 0] == self.rules.eot).all(1)
        if all_ended.any():
            chosen = chosen[: int(all_ended.argmax()) + 1]  # the steps after it were for others
        self._rounds.append(chosen)
        self.n_left -= len(chosen)
        for history, tokens in zip(self.member.histories, chosen[:, :, 0].T.tolist(), strict=True):
            history.extend(tokens)
        if self.n_left == 0 or all_ended.any():
            self._settle()

    def _settle(self) -> None:
        chosen, bits = np.ascontiguousarray(np.concatenate(self._rounds).transpose(2, 1, 0))
        log_probabilities = bits.view(np.float32)
        is_wrong = bool(np.isnan(log_probabilities).any())
        for history in self.member.histories:
            del history[len(history) - (chosen.shape[1] if is_wrong else 1) :]
        if is_wrong:
            self.result.set_exception(ValueError("the rules leave no token to choose"))
        else:
            self.result.set_result((chosen.view(np.int32), log_probabilities))


class Batch:
    """The contexts of a model that are choosing tokens. Thread-safe; rounds are jobs on the device's thread."""

    def __init__(self, program: DecoderProgram) -> None:
        self._program, self._device = program, program.device
        self._lock = threading.Lock()
        self._waiting: deque[Greedy] = deque()
        self._goes_on = False
        # The fields below belong to the device's thread.
        self._active: list[Greedy] = []
        self._buffers: Activations | None = None
        self._mask: NDArray[np.uint32] | None = None  # the one on the device
        self._opening: list[Dispatch] = []  # before the first step
        self._step: list[Dispatch] = []  # of all active ones
        self._has_left = False  # a context in _step has left
        self._n_chosen = 0  # steps since _step was recorded

    def run(self, greedy: Greedy) -> Chosen:
        """The result of `greedy`, once computed; not on the device's thread. Raises what failed."""
        with self._lock:
            self._waiting.append(greedy)
            begins, self._goes_on = not self._goes_on, True
        if begins:
            self._enqueue()
        return greedy.result.result()

    def close(self) -> None:
        """Free the memory, after all contexts are closed. Idempotent."""
        if self._buffers is not None:
            self._buffers.close()

    def _enqueue(self) -> None:
        """Queue the next round behind the device's waiting jobs."""
        try:
            self._device.enqueue(self._round)
        except RuntimeError as error:
            self._fail(error)

    def _round(self) -> None:
        try:
            self._admit()
            if self._active:
                self._advance()
        except Exception as error:  # any error must reach the waiting contexts
            self._fail(error)
        with self._lock:
            self._goes_on = bool(self._active or self._waiting)
            goes_on = self._goes_on
        if goes_on:
            self._enqueue()

    def _fail(self, error: Exception) -> None:
        with self._lock:
            failed = [greedy for greedy in (*self._active, *self._waiting) if not greedy.result.done()]
            self._waiting.clear()
            self._active, self._step, self._goes_on = [], [], False
        for greedy in failed:
            greedy.result.set_exception(error)

    def _admit(self) -> None:
        """Admit waiting contexts that fit, in order; lay out the rows again if contexts joined or left."""
        joined = False
        while (greedy := self._next()) is not None:
            try:
                greedy.begin()
            except Exception as error:  # any error must reach its context
                greedy.result.set_exception(error)
                continue
            # The last token chosen needs no place in the cache.
            room = self._program.dims.n_text_ctx + 1 - len(greedy.member.histories[0])
            greedy.n_left = min(greedy.n_left, room)
            self._active.append(greedy)
            joined = True
        if self._active and (joined or self._has_left):
            self._arrange()

    def _next(self) -> Greedy | None:
        """The first waiting context, if there is room and its rules match those of the active ones."""
        with self._lock:
            if not self._waiting:
                return None
            first, n_rows = self._waiting[0], sum(greedy.n_sequences for greedy in self._active)
            if self._active and (n_rows + first.n_sequences > MAX_ROWS or not self._goes_with(first)):
                return None
            return self._waiting.popleft()

    def _goes_with(self, greedy: Greedy) -> bool:
        theirs, n_vocab = self._active[0].rules, self._program.dims.n_vocab
        if (greedy.rules.eot, greedy.rules.timestamp_begin) != (theirs.eot, theirs.timestamp_begin):
            return False
        return np.array_equal(mask_words(greedy.rules, n_vocab), mask_words(theirs, n_vocab))

    def _arrange(self) -> None:
        """Give each active context its rows, write them to the device, and record a step of all."""
        program, n_vocab = self._program, self._program.dims.n_vocab
        b = self._buffers = self._buffers or program.activations()
        rows: list[Row] = []
        owns, sequences = [], []
        for greedy in self._active:
            owns.append(greedy.member.own_launches(b, len(rows)))
            for slot, history in enumerate(greedy.member.histories):
                rows.append(Row(history[-1], slot, len(history) - 1))
                sequences.append((greedy.rules, history))
        mask = mask_words(self._active[0].rules, n_vocab)
        if self._mask is None or not np.array_equal(mask, self._mask):
            self._device.write(b.mask, mask)
            self._mask = mask
        self._device.write(b.state, state_words(rows, n_vocab, sequences))
        self._opening = program.embed(b, len(rows))
        layers = woven(owns, program.common_launches(b, len(rows)))
        self._step = [*layers, *program.logits(b, len(rows)), *program.choose(b, len(rows))]
        self._has_left, self._n_chosen = False, 0

    def _advance(self) -> None:
        """Run a few steps of all active contexts; finished ones leave."""
        assert self._buffers is not None
        b, n_rows = self._buffers, sum(greedy.n_sequences for greedy in self._active)
        n_steps = min(self._program.tiling.steps_per_submit, *(greedy.n_left for greedy in self._active))
        if len(self._active) > 1:
            n_steps = min(n_steps, SHARED_STEPS)
        recording = Recording(self._device)
        recording.steps.extend([*self._opening, *self._step * n_steps])
        self._opening = []  # each choice embeds the next token
        reads = [b.state.view(0, STATE.itemsize), b.chosen.view(8 * n_rows * self._n_chosen, 8 * n_rows * n_steps)]
        state, words = self._device.submit(recording, reads=reads)
        n_chosen = int(state.view(STATE)["n_chosen"][0])
        chosen = words.view(np.uint32).reshape(n_steps, n_rows, 2)[: n_chosen - self._n_chosen]
        self._n_chosen = n_chosen
        start = 0
        for greedy in self._active:
            greedy.take(chosen[:, start : start + greedy.n_sequences])
            start += greedy.n_sequences
        staying = [greedy for greedy in self._active if not greedy.result.done()]
        self._has_left = len(staying) < len(self._active)
        self._active = staying
        if not staying:
            self._step = []  # releases the contexts' buffers
