"""The decoder's launches: weights on the device, which kernel runs over what buffers, in which tiling."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kernels.checkpoint import Checkpoint
from kernels.cross_memory import CrossMemory
from kernels.decoder_memory import DecoderBuffers, DecoderWeights
from kernels.decoder_source_parts import SUBGROUP, WORKGROUP
from kernels.decoder_sources import TILE
from kernels.device import Device
from kernels.recording import Binding, Dispatch, Pipeline, Recording, View

IDLE_SETS = 4  # buffer sets of each capacity kept for the next contexts


@dataclass(frozen=True)
class Tiling:
    """How the work is cut, for a sort of adapter. See decoder_sources.py for the two `kind`s."""

    kind: str  # SUBGROUP or WORKGROUP
    lanes: int  # invocations that share a row of weights; the subgroup size, or less, where `kind` is SUBGROUP
    workgroup: int  # invocations of a matrix-vector workgroup
    workgroups: int  # of a matrix-vector launch, about: the layer norm is repeated in each
    logits_tiles: int  # tiles of the token table a workgroup takes
    attention_workgroup: int
    splits: int  # of the audio in cross-attention
    steps_per_submit: int

    @classmethod
    def of(cls, device: Device) -> "Tiling":
        """What suits the adapter: measured for lavapipe, from published kernels for hardware."""
        if device.info.is_software and device.has_subgroups:
            lanes = device.subgroup_size
            return cls(SUBGROUP, lanes, lanes, 16, 128 // lanes, lanes, 1, 2)
        return cls(WORKGROUP, 64, 256, 1024, 4, 64, 24, 16)

    @property
    def per_tile(self) -> int:
        """Outputs a workgroup computes at a time."""
        return TILE * (self.lanes if self.kind == SUBGROUP else self.workgroup // self.lanes)

    def tiles(self, n_out: int) -> int:
        """Tiles a workgroup takes of n_out outputs, for about `workgroups` of them."""
        return max(1, n_out // (self.per_tile * self.workgroups))

    def constants(self) -> dict[str, float]:
        return {"LANES": self.lanes} if self.kind == SUBGROUP else {"LANES": self.lanes, "WORKGROUP": self.workgroup}


class _Groups:
    """Makes each bind group once: those of a buffer set live as long as it does."""

    def __init__(self, device: Device, made: dict[tuple[int, tuple[View, ...]], Any]) -> None:
        self._device, self._made = device, made

    def bind_group(self, pipeline: Pipeline, views: Sequence[View]) -> Any:
        key = (id(pipeline.layout), tuple(views))
        if key not in self._made:
            self._made[key] = self._device.bind_group(pipeline, views)
        return self._made[key]


class DecoderProgram:
    """Recordings of the decoder's passes over a context's buffers, for a model's weights in one tiling."""

    def __init__(self, device: Device, checkpoint: Checkpoint, tiling: Tiling | None = None) -> None:
        self.device, self.dims = device, checkpoint.dims
        self.tiling = tiling or Tiling.of(device)
        n, heads = self.dims.n_text_state, self.dims.n_text_head
        if n % 8 or (n // heads) % 8 or n % heads:
            raise ValueError(f"n_text_state {n} in {heads} heads: a head's width must be a multiple of 8")
        self.weights = DecoderWeights(device, checkpoint)
        # (first token, past the last, first entry in partials) of the table's parts that fit a binding each.
        self.ranges: list[tuple[int, int, int]] = []
        self.n_groups = 0
        for start, stop in device.row_ranges(self.dims.n_vocab, 2 * n):
            self.ranges.append((start, stop, self.n_groups))
            self.n_groups += self._n_logits_groups(stop - start)

    @property
    def partial_bytes(self) -> int:
        """Of what a row's logits leave for the choice."""
        return self.n_groups * 2 * 16

    def buffers(self, capacity: int) -> DecoderBuffers:
        return DecoderBuffers(self.device, self.dims, self.tiling.splits, self.partial_bytes, capacity)

    def close(self) -> None:
        self.weights.close()

    def layers(self, b: DecoderBuffers, cross: CrossMemory, n_rows: int) -> list[Dispatch]:
        """All layers over n_rows rows: x in, x out, keys and values to the cache. 8 launches a layer."""
        r = Recording(_Groups(self.device, b.groups))
        # The cross-attention's bind groups belong to one encoder result and must not outlive it in the buffers' own.
        passing = Recording(self.device)
        n, n_head, n_ctx = self.dims.n_text_state, self.dims.n_text_head, self.dims.n_text_ctx
        scale = (n // n_head) ** -0.5
        for i, w in enumerate(self.weights.layers):
            keys, values = b.keys[i], b.values[i]
            query = b.cross_query.view(i * b.row_bytes, b.row_bytes)
            own = {"SCALE": scale, "N_TEXT_CTX": n_ctx}
            outputs = [b.query, keys, values]
            self._linear(r, "ln_qkv", n_rows, [b.x, *w["attn_ln"], *w["qkv"], b.state, *outputs], n, 3 * n, own)
            self._attend(r, "self", [b.query, keys, values, b.slots, b.state, b.attended], n_rows, n_ctx)
            self._linear(r, "linear_residual", n_rows, [b.attended, *w["out"], b.state, b.x], n, n)
            bindings: list[Binding] = [b.x, *w["cross_ln"], *w["cross_query"], b.state, query]
            self._linear(r, "ln_linear", n_rows, bindings, n, n, {"SCALE": scale})
            self._attend(passing, "cross", [query, *cross.layers[i], b.state, b.parts, b.stats], n_rows)
            r.steps.append(passing.steps.pop())
            splits = {"SPLITS": self.tiling.splits, "HEAD8": n // n_head // 8}
            bindings = [b.parts, b.stats, *w["cross_out"], b.state, b.x]
            self._linear(r, "combine_residual", n_rows, bindings, n, n, splits)
            bindings = [b.x, *w["mlp_ln"], *w["fc1"], b.state, b.hidden]
            self._linear(r, "ln_linear", n_rows, bindings, n, 4 * n, {"GELU": 1})
            self._linear(r, "linear_residual", n_rows, [b.hidden, *w["fc2"], b.state, b.x], 4 * n, n)
        return _dispatches(r)

    def logits(
        self, b: DecoderBuffers, n_rows: int, logits: Binding | None = None, partials: Binding | None = None
    ) -> list[Dispatch]:
        """The logits of x's first n_rows rows, and what choosing needs of them. One launch a part of the table."""
        r = Recording(_Groups(self.device, b.groups) if logits is None else self.device)
        n, tiles = self.dims.n_text_state, self.tiling.logits_tiles
        for start, stop, first_group in self.ranges:
            constants = {"FIRST": start, "N_VOCAB": self.dims.n_vocab, "FIRST_GROUP": first_group}
            constants |= {"N_GROUPS": self.n_groups}
            table = self._part(start, stop)
            bindings: list[Binding] = [
                b.x,
                self.weights.norm,
                table,
                b.state,
                b.mask,
                logits or b.logits,
                partials or b.partials,
            ]
            self._linear(r, "ln_logits", n_rows, bindings, n, stop - start, constants, tiles)
        return _dispatches(r)

    def choose(self, b: DecoderBuffers, n_rows: int) -> list[Dispatch]:
        """The next token of each sequence, and x for it. One launch, and one more a further part of the table."""
        r = Recording(_Groups(self.device, b.groups))
        start, stop, _ = self.ranges[0]
        constants = {"WORKGROUP": self.tiling.attention_workgroup, "N_IN": self.dims.n_text_state, "N_RANGE": stop}
        constants |= {"N_GROUPS": self.n_groups, "N_VOCAB": self.dims.n_vocab, "N_TEXT_CTX": self.dims.n_text_ctx}
        bindings: list[Binding] = [b.partials, self._part(start, stop), self.weights.positions, b.state, b.x, b.chosen]
        r.dispatch(self.device.pipeline("decoder_choose", constants), bindings, 1)
        return [*_dispatches(r), *self.embed(b, n_rows, self.ranges[1:])]

    def embed(
        self, b: DecoderBuffers, n_rows: int, ranges: Sequence[tuple[int, int, int]] | None = None
    ) -> list[Dispatch]:
        """x of the rows in state. One launch a part of the table."""
        r = Recording(_Groups(self.device, b.groups))
        for start, stop, _ in self.ranges if ranges is None else ranges:
            constants = {"WORKGROUP": self.tiling.attention_workgroup, "N_IN": self.dims.n_text_state}
            constants |= {"FIRST": start, "N_RANGE": stop - start}
            bindings: list[Binding] = [self._part(start, stop), self.weights.positions, b.state, b.x]
            r.dispatch(self.device.pipeline("decoder_embed", constants), bindings, 1, n_rows)
        return _dispatches(r)

    def _part(self, start: int, stop: int) -> View:
        row = 2 * self.dims.n_text_state
        return self.weights.table.view(start * row, (stop - start) * row)

    def _n_logits_groups(self, n_out: int) -> int:
        return -(-n_out // (self.tiling.per_tile * self.tiling.logits_tiles))

    def _linear(
        self,
        recording: Recording,
        kernel: str,
        n_rows: int,
        bindings: Sequence[Binding],
        n_in: int,
        n_out: int,
        constants: Mapping[str, float] | None = None,
        tiles: int | None = None,
    ) -> None:
        t = self.tiling
        tiles = tiles or t.tiles(n_out)
        rows = 1 if n_rows == 1 else 4
        constants = {**t.constants(), "TILES": tiles, "N_IN": n_in, "N_OUT": n_out, **(constants or {})}
        pipeline = self.device.pipeline(f"decoder_{kernel}_{t.kind}_{rows}", constants)
        recording.dispatch(pipeline, bindings, -(-n_out // (t.per_tile * tiles)), -(-n_rows // rows))

    def _attend(
        self, recording: Recording, kind: str, bindings: Sequence[Binding], n_rows: int, n_ctx: int | None = None
    ) -> None:
        t, n_head = self.tiling, self.dims.n_text_head
        size = "LANES" if t.kind == SUBGROUP else "WORKGROUP"
        constants = {size: t.attention_workgroup, "HEAD8": self.dims.n_text_state // n_head // 8}
        constants |= {"N_HEAD": n_head, "N_CTX": n_ctx or self.dims.n_audio_ctx}
        name, rows, splits = f"decoder_{kind}_attention_{t.kind}", 1, 1
        if kind == "cross":
            rows, splits = (1 if n_rows == 1 else 4), t.splits
            constants["SPLITS"] = splits
            name += f"_{rows}"
        recording.dispatch(self.device.pipeline(name, constants), bindings, n_head, -(-n_rows // rows), splits)


def _dispatches(recording: Recording) -> list[Dispatch]:
    return [step for step in recording.steps if isinstance(step, Dispatch)]


class DecoderPool:
    """Buffer sets that contexts take and give back, so that the next request allocates nothing. Thread-safe."""

    def __init__(self, program: "DecoderProgram") -> None:
        self.program = program
        self._idle: dict[int, list[DecoderBuffers]] = {}
        self._closed = False
        self._lock = threading.Lock()

    def take(self, n_sequences: int) -> DecoderBuffers:
        """Buffers for at least that many sequences."""
        capacity = 1 << (n_sequences - 1).bit_length()
        with self._lock:
            if self._idle.get(capacity):
                return self._idle[capacity].pop()
        return self.program.buffers(capacity)

    def give(self, buffers: DecoderBuffers) -> None:
        """Keep them for the next context, or free them if enough are kept."""
        with self._lock:
            idle = self._idle.setdefault(buffers.capacity, [])
            if not self._closed and len(idle) < IDLE_SETS:
                idle.append(buffers)
                return
        buffers.close()

    def close(self) -> None:
        """Free the idle ones. Idempotent."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, {}
        for buffers in (item for items in idle.values() for item in items):
            buffers.close()
