"""The decoder's launches: which kernel runs over what buffers, in what order."""

from collections.abc import Sequence
from typing import Any

from kernels.checkpoint import Checkpoint
from kernels.cross_memory import CrossMemory
from kernels.decoder_kernels import DecoderKernels, Part, Tiling
from kernels.decoder_memory import DecoderBuffers, DecoderWeights
from kernels.decoder_source_parts import SUBGROUP
from kernels.device import Device, DeviceError
from kernels.recording import Binding, Dispatch, Pipeline, Recording, View


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
        widest = n if self.tiling.kind == SUBGROUP else 8 * self.tiling.attention_workgroup
        if n % heads or (n // heads) % 8 or n // heads > widest:
            raise DeviceError(f"decoder heads of {n} / {heads} columns: the kernels are for multiples of 8 to {widest}")
        self.kernels = DecoderKernels(device, self.dims, self.tiling)
        self.weights = DecoderWeights(device, checkpoint)

    @property
    def partial_bytes(self) -> int:
        """Of what a row's logits leave for the choice."""
        return self.kernels.n_groups * 2 * 16

    def buffers(self, capacity: int) -> DecoderBuffers:
        return DecoderBuffers(self.device, self.dims, self.tiling.splits, self.partial_bytes, capacity)

    def close(self) -> None:
        self.weights.close()

    def layers(self, b: DecoderBuffers, cross: CrossMemory, n_rows: int) -> list[Dispatch]:
        """All layers over n_rows rows: x in, x out, keys and values to the cache. 8 launches a layer."""
        r = Recording(_Groups(self.device, b.groups))
        # The cross-attention's bind groups belong to one encoder result and must not outlive it in the buffers' own.
        passing = Recording(self.device)
        launch = self.kernels.launch
        for i, w in enumerate(self.weights.layers):
            keys, values = b.keys[i], b.values[i]
            query = b.cross_query.view(i * b.row_bytes, b.row_bytes)
            launch(r, "qkv", n_rows, [b.x, *w["attn_ln"], *w["qkv"], b.state, b.query, keys, values])
            launch(r, "self_attention", n_rows, [b.query, keys, values, b.slots, b.state, b.attended])
            launch(r, "out", n_rows, [b.attended, *w["out"], b.state, b.x])
            launch(r, "cross_query", n_rows, [b.x, *w["cross_ln"], *w["cross_query"], b.state, query])
            launch(passing, "cross_attention", n_rows, [query, *cross.layers[i], b.state, b.parts, b.stats])
            r.steps.append(passing.steps.pop())
            launch(r, "cross_out", n_rows, [b.parts, b.stats, *w["cross_out"], b.state, b.x])
            launch(r, "fc1", n_rows, [b.x, *w["mlp_ln"], *w["fc1"], b.state, b.hidden])
            launch(r, "fc2", n_rows, [b.hidden, *w["fc2"], b.state, b.x])
        return _dispatches(r)

    def logits(
        self, b: DecoderBuffers, n_rows: int, logits: Binding | None = None, partials: Binding | None = None
    ) -> list[Dispatch]:
        """The logits of x's first n_rows rows, and what choosing needs of them. One launch a part of the table."""
        r = Recording(_Groups(self.device, b.groups) if logits is None else self.device)
        outputs = [logits or b.logits, partials or b.partials]
        for part in self.kernels.parts:
            bindings: list[Binding] = [b.x, self.weights.norm, self._table(part), b.state, b.mask, *outputs]
            self.kernels.launch(r, f"logits {part.start}", n_rows, bindings)
        return _dispatches(r)

    def choose(self, b: DecoderBuffers, n_rows: int) -> list[Dispatch]:
        """The next token of each sequence, and x for it. One launch, and one more a further part of the table."""
        r = Recording(_Groups(self.device, b.groups))
        first, *others = self.kernels.parts
        bindings: list[Binding] = [b.partials, self._table(first), self.weights.positions, b.state, b.x, b.chosen]
        self.kernels.launch(r, "choose", 1, bindings)  # one workgroup, whatever the number of sequences
        return [*_dispatches(r), *self.embed(b, n_rows, others)]

    def embed(self, b: DecoderBuffers, n_rows: int, parts: Sequence[Part] | None = None) -> list[Dispatch]:
        """x of the rows in state. One launch a part of the table."""
        r = Recording(_Groups(self.device, b.groups))
        for part in self.kernels.parts if parts is None else parts:
            bindings: list[Binding] = [self._table(part), self.weights.positions, b.state, b.x]
            self.kernels.launch(r, f"embed {part.start}", n_rows, bindings)
        return _dispatches(r)

    def _table(self, part: Part) -> View:
        row = 2 * self.dims.n_text_state
        return self.weights.table.view(part.start * row, (part.stop - part.start) * row)


def _dispatches(recording: Recording) -> list[Dispatch]:
    return [step for step in recording.steps if isinstance(step, Dispatch)]
