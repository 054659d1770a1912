"""whisper.cpp's ggml .bin checkpoints: dims, mel filters, vocabulary and tensors in one file, f16 or f32.

The vocabulary is a list of byte strings in rank order, so a tokenizer.json is rebuilt from it.
"""

import mmap
import struct
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from kernels.formats_common import MAX_DIM, CheckpointError, Stored, check_dims, map_file, tensor_at
from kernels.formats_vocabulary import tokenizer_json

MAGIC = 0x67676D6C  # "ggml"
MAX_TOKEN_BYTES = 256  # the longest of GPT-2's has 128
MAX_NAME_BYTES = 256
_HPARAMS = (
    *("n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer"),
    *("n_text_ctx", "n_text_state", "n_text_head", "n_text_layer", "n_mels"),
)
_DTYPES = {0: ("F32", 4), 1: ("F16", 2)}  # the others are quantised


def read_ggml(weights: Path) -> Stored:
    """The tensors, as mapped views, and the vocabulary of a ggml file. Raises CheckpointError unless it is whole."""
    reader = _Reader(weights, map_file(weights))
    (magic,) = reader.numbers(1)
    if magic != MAGIC:
        raise CheckpointError(f"{weights.name}: starts with {magic & 0xFFFFFFFF:#010x}, expected ggml's {MAGIC:#x}")
    *hparams, ftype = reader.numbers(len(_HPARAMS) + 1)
    dims = check_dims(weights, dict(zip(_HPARAMS, hparams, strict=True)))
    if ftype not in _DTYPES:
        raise CheckpointError(f"{weights.name}: is quantised (ftype {ftype}), expected f32 (0) or f16 (1)")
    n_mels, n_fft = reader.numbers(2)
    if not (0 <= n_mels <= MAX_DIM and 0 <= n_fft <= MAX_DIM):
        raise CheckpointError(f"{weights.name}: claims mel filters of {n_mels}×{n_fft}")
    reader.take(4 * n_mels * n_fft)  # the filters follow from n_mels
    (n_tokens,) = reader.numbers(1)
    if not 0 < n_tokens <= dims.n_vocab:
        raise CheckpointError(f"{weights.name}: claims {n_tokens} tokens of a vocabulary of {dims.n_vocab}")
    tokens = [reader.text(MAX_TOKEN_BYTES, "a token") for _ in range(n_tokens)]
    arrays: dict[str, NDArray[Any]] = {}
    while reader.position < len(reader.data):
        name, array = reader.tensor()
        # Written as [n, 1]: ggml adds it to [n_frames] by broadcasting.
        arrays[name] = array.reshape(-1) if name in ("encoder.conv1.bias", "encoder.conv2.bias") else array
    return Stored(
        dims,
        arrays,
        lambda name: name,
        maps=(reader.data,),
        make_tokenizer=lambda: tokenizer_json(weights, tokens, dims.n_vocab, dims.n_audio_ctx),
    )


class _Reader:
    """Walks the file; whatever reaches past its end raises CheckpointError."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.position = 0

    def take(self, count: int) -> int:
        """Moves past `count` bytes and returns where they began."""
        begin = self.position
        if count > len(self.data) - begin:
            raise CheckpointError(f"{self.path.name}: is cut short at byte {len(self.data)}")
        self.position += count
        return begin

    def numbers(self, count: int) -> tuple[int, ...]:
        """`count` i32."""
        return struct.unpack_from(f"<{count}i", self.data, self.take(4 * count))

    def text(self, limit: int, what: str) -> bytes:
        """An i32 length and so many bytes."""
        (length,) = self.numbers(1)
        if not 0 <= length <= limit:
            raise CheckpointError(f"{self.path.name}: claims {what} of {length} bytes")
        begin = self.take(length)
        return self.data[begin : begin + length]

    def tensor(self) -> tuple[str, NDArray[Any]]:
        """A name and its values, sizes written last dimension first."""
        n_dims, name_length, ftype = self.numbers(3)
        if not 1 <= n_dims <= 4 or not 0 < name_length <= MAX_NAME_BYTES:
            raise CheckpointError(f"{self.path.name}: has a damaged tensor header at byte {self.position}")
        shape = tuple(reversed(self.numbers(n_dims)))
        begin = self.take(name_length)
        name = self.data[begin : begin + name_length].decode("utf-8", "replace")
        if ftype not in _DTYPES:
            raise CheckpointError(f"{self.path.name}: tensor {name} is quantised (type {ftype}), expected f32 or f16")
        dtype, itemsize = _DTYPES[ftype]
        n_values = 1
        for size in shape:
            if not 0 < size <= MAX_DIM:
                raise CheckpointError(f"{self.path.name}: tensor {name} has an impossible shape {list(shape)}")
            n_values *= size
        begin = self.take(n_values * itemsize)
        return name, tensor_at(self.path, name, self.data, dtype, shape, begin, self.position)
