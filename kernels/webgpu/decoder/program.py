"""The decoder's launches: which kernel runs over which buffers, in what order."""

from collections.abc import Sequence

import numpy as np

from kernels.checkpoints.load import Checkpoint
from kernels.webgpu.cross_memory import CrossMemory
from kernels.webgpu.decoder.kernels import DecoderKernels, Part, Tiling
from kernels.webgpu.decoder.memory import Activations, DecoderBuffers, DecoderWeights
from kernels.webgpu.decoder.state import MAX_ROWS
from kernels.webgpu.device import Device, DeviceError
from kernels.webgpu.recording import Binding, Buffer, Dispatch, Recording, View
from kernels.webgpu.wgsl import SUBGROUP


class DecoderProgram:
    """The launches of the decoder's passes, for a model's weights in one tiling. A layer takes 8 for one context, and 3
    more for each further one in the same pass, in the order of woven()."""

    def __init__(self, device: Device, checkpoint: Checkpoint, tiling: Tiling | None = None) -> None:
        self.device, self.dims = device, checkpoint.dims
        self.tiling = tiling or Tiling.of(device)
        n, heads = self.dims.n_text_state, self.dims.n_text_head
        widest = n if self.tiling.reduction == SUBGROUP else 8 * self.tiling.attention_workgroup
        if n % heads or (n // heads) % 8 or n // heads > widest:
            raise DeviceError(f"decoder heads of {n} / {heads} columns: the kernels are for multiples of 8 to {widest}")
        self.kernels = DecoderKernels(device, self.dims, self.tiling)
        self.weights = DecoderWeights(device, checkpoint)
        self._params: dict[tuple[int, int], Buffer] = {}

    @property
    def partial_bytes(self) -> int:
        """Bytes that a row's logits leave for the choice."""
        return self.kernels.n_groups * 2 * 16

    def buffers(self, capacity: int) -> DecoderBuffers:
        return DecoderBuffers(self.device, self.dims, self.tiling.splits, self.partial_bytes, capacity)

    def activations(self) -> Activations:
        """For a batch: as many sequences as a pass has rows."""
        return Activations(self.device, self.dims, self.tiling.splits, self.partial_bytes, MAX_ROWS)

    def close(self) -> None:
        self.weights.close()
        for params in self._params.values():
            params.close()

    def own_launches(
        self, b: Activations, cache: DecoderBuffers, cross: CrossMemory, first_row: int, n_rows: int
    ) -> list[list[Dispatch]]:
        """Of each layer, the 3 launches bound to one context: Q, K and V of n_rows rows, self- and cross-attention."""
        layers = []
        rows, launch = self._rows(first_row, first_row + n_rows), self.kernels.launch
        for i, w in enumerate(self.weights.layers):
            r = Recording(cache)
            keys, values = cache.keys[i], cache.values[i]
            launch(r, "qkv", n_rows, [b.x, *w["attn_ln"], *w["qkv"], b.state, b.query, keys, values, rows])
            launch(r, "self_attention", n_rows, [b.query, keys, values, cache.slots, b.state, b.attended, rows])
            # Cross-attention's bind groups belong to one encoder result and must not outlive it in the buffers' own.
            passing = Recording(self.device)
            query = [self._cross_query(b, i), *cross.layers[i]]
            launch(passing, "cross_attention", n_rows, [*query, b.state, b.parts, b.stats, rows])
            layers.append([*r.dispatches, *passing.dispatches])
        return layers

    def common_launches(self, b: Activations, n_rows: int) -> list[list[Dispatch]]:
        """Of each layer, the 5 launches that need no cache, over all n_rows rows: they read the weights once."""
        layers, launch = [], self.kernels.launch
        for i, w in enumerate(self.weights.layers):
            r = Recording(b)
            launch(r, "out", n_rows, [b.attended, *w["out"], b.state, b.x])
            query = self._cross_query(b, i)
            launch(r, "cross_query", n_rows, [b.x, *w["cross_ln"], *w["cross_query"], b.state, query])
            launch(r, "cross_out", n_rows, [b.parts, b.stats, *w["cross_out"], b.state, b.x])
            launch(r, "fc1", n_rows, [b.x, *w["mlp_ln"], *w["fc1"], b.state, b.hidden])
            launch(r, "fc2", n_rows, [b.hidden, *w["fc2"], b.state, b.x])
            layers.append(r.dispatches)
        return layers

    def _cross_query(self, b: Activations, layer: int) -> View:
        return b.cross_query.view(layer * b.row_bytes, b.row_bytes)

    def _rows(self, first: int, end: int) -> Buffer:
        """`params` of the launches for one context."""
        if (first, end) not in self._params:
            self._params[first, end] = self.device.buffer(np.array([first, end], np.uint32), uniform=True)
        return self._params[first, end]

    def logits(
        self, b: Activations, n_rows: int, logits: Binding | None = None, partials: Binding | None = None
    ) -> list[Dispatch]:
        """The logits of x's first n_rows rows, and the choice's inputs. One launch per part of the table."""
        r = Recording(b if logits is None else self.device)
        outputs = [logits or b.logits, partials or b.partials]
        for part in self.kernels.parts:
            bindings: list[Binding] = [b.x, self.weights.norm, self._table(part), b.state, b.mask, *outputs]
            self.kernels.launch(r, f"logits {part.start}", n_rows, bindings)
        return r.dispatches

    def choose(self, b: Activations, n_rows: int) -> list[Dispatch]:
        """The next token of each sequence, and x for it. One launch, plus one per further part of the table."""
        r = Recording(b)
        first, *others = self.kernels.parts
        bindings: list[Binding] = [b.partials, self._table(first), self.weights.positions, b.state, b.x, b.chosen]
        self.kernels.launch(r, "choose", 1, bindings)  # one workgroup, whatever the number of sequences
        return [*r.dispatches, *self.embed(b, n_rows, others)]

    def embed(self, b: Activations, n_rows: int, parts: Sequence[Part] | None = None) -> list[Dispatch]:
        """x of the rows in the state. One launch per part of the table."""
        r = Recording(b)
        for part in self.kernels.parts if parts is None else parts:
            bindings: list[Binding] = [self._table(part), self.weights.positions, b.state, b.x]
            self.kernels.launch(r, f"embed {part.start}", n_rows, bindings)
        return r.dispatches

    def _table(self, part: Part) -> View:
        row = 2 * self.dims.n_text_state
        return self.weights.table.view(part.start * row, (part.stop - part.start) * row)


def woven(owns: Sequence[Sequence[Sequence[Dispatch]]], common: Sequence[Sequence[Dispatch]]) -> list[Dispatch]:
    """All layers in order, from each context's own launches and from the common ones: x in, x out."""
    steps: list[Dispatch] = []
    for i, (out, cross_query, cross_out, fc1, fc2) in enumerate(common):
        qkv, self_attention, cross_attention = zip(*(own[i] for own in owns), strict=True)
        steps += [*qkv, *self_attention, out, cross_query, *cross_attention, cross_out, fc1, fc2]
    return steps
