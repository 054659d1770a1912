"""Burn checkpoints, as the Docker demo ships them: a .cfg of dims, and an .mpk or .mpk.gz of MessagePack records.

The reader walks the file once and keeps tensors as views of it. The msgpack library cannot: it copies every tensor's
bytes, and makes tens of millions of Python floats of the older encoding, a list of numbers.
"""

import math
import mmap
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.checkpoints.common import (
    CheckpointError,
    Dimensions,
    Stored,
    check_dims,
    expected_shapes,
    map_file,
    parse_json,
    read_text,
    tensor_at,
)
from kernels.checkpoints.walk import Walk

MAX_ITEMS = 1 << 12  # in a record; the longest is the list of blocks
MAX_DEPTH = 32  # a Whisper's records are nested eight deep
FLOAT_STRIDE = 5  # bytes: 0xca, then a big-endian f32
MAX_RATIO = 32  # of unpacked to packed bytes, without the spare ones: a trained model's numbers hardly pack to half
SPARE_BYTES = 64 << 20  # a file's content apart from its tensors' values: the decoder's mask, names, ids

_LINEAR = re.compile(r"\.(query|key|value|out|lin1|lin2)\.weight$")  # [in, out] in Burn
_FLOATS = np.dtype([("tag", "u1"), ("value", ">f4")])
# First byte of a MessagePack item → (how its length follows, bytes of it, its kind).
_SIZED = {
    0xC4: (">B", "bin"),
    0xC5: (">H", "bin"),
    0xC6: (">I", "bin"),
    0xD9: (">B", "str"),
    0xDA: (">H", "str"),
    0xDB: (">I", "str"),
    0xDC: (">H", "array"),
    0xDD: (">I", "array"),
    0xDE: (">H", "map"),
    0xDF: (">I", "map"),
}
_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}


def burn_name(name: str) -> str:
    """OpenAI's tensor name as Burn writes it: encoder.blocks.0.mlp_ln.weight → encoder.blocks.0.mlp_ln.gamma."""
    if re.search(r"(_ln|\.ln_post|\.ln)\.(weight|bias)$", name):
        name = re.sub(r"\.weight$", ".gamma", name)
        name = re.sub(r"\.bias$", ".beta", name)
    name = name.replace(".mlp.0.", ".mlp.lin1.").replace(".mlp.2.", ".mlp.lin2.")
    return name.replace(".token_embedding.weight", ".token_embedding")


def read_burn(weights: Path, config: Path) -> Stored:
    """The parameters of an .mpk or .mpk.gz file, under Burn's names, Linear weights transposed to [out, in].

    Raises CheckpointError unless the file is whole and consistent.
    """
    halves = parse_json(config, read_text(config))
    sizes: dict[str, Any] = {}
    for half in ("audio_encoder_config", "text_decoder_config"):
        values = halves.get(half)
        if not isinstance(values, dict):
            raise CheckpointError(f"{config.name}: has no {half}")
        sizes |= values
    dims = check_dims(config, sizes)
    data = map_file(weights)
    if weights.name.endswith(".gz"):
        unpacked = _gunzip(weights, data, dims)
        reader = _Reader(weights, unpacked)
        maps: tuple[mmap.mmap, ...] = ()
        data.close()
    else:
        reader = _Reader(weights, data)
        maps = (data,)
    record = reader.item(0)
    if reader.position != len(reader.data):
        raise CheckpointError(f"{weights.name}: {len(reader.data) - reader.position} bytes follow the record")
    item = record.get("item") if isinstance(record, dict) else None
    if not isinstance(item, dict):
        raise CheckpointError(f"{weights.name}: has no item record of a model")
    arrays: dict[str, NDArray[Any]] = {}
    _collect(reader, item, "", arrays)
    return Stored(dims, arrays, burn_name, frozenset({"decoder.mask"}), maps)


def _gunzip(path: Path, data: mmap.mmap, dims: Dimensions) -> bytes:
    """The unpacked gzip file, limited to what a model of these dims, in a file of this size, can need."""
    n_values = sum(math.prod(shape) for shape in expected_shapes(dims).values())
    limit = min(n_values * FLOAT_STRIDE, len(data) * MAX_RATIO) + SPARE_BYTES
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        unpacked = unpacker.decompress(data, limit)
    except zlib.error as error:
        raise CheckpointError(f"{path.name}: is not whole gzip data ({error})") from None
    if not unpacker.eof:
        raise CheckpointError(
            f"{path.name}: " + (f"unpacks to over {limit} bytes" if len(unpacked) == limit else "is cut short")
        )
    return unpacked


class _Reader(Walk):
    """A MessagePack reader. Binary data becomes a slice and a list of f32 a view; all else becomes Python objects."""

    def _number(self, code: str) -> Any:
        return struct.unpack_from(code, self.data, self.take(struct.calcsize(code)))[0]

    def item(self, depth: int) -> Any:
        """The next item."""
        if depth > MAX_DEPTH:
            raise CheckpointError(f"{self.path.name}: records are nested deeper than {MAX_DEPTH}")
        tag = self.data[self.take(1)]
        if tag < 0x80 or tag >= 0xE0:
            return tag if tag < 0x80 else tag - 0x100
        if tag < 0x90:
            return self._map(tag & 0x0F, depth)
        if tag < 0xA0:
            return self._array(tag & 0x0F, depth)
        if tag < 0xC0:
            return self._string(tag & 0x1F)
        if tag in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[tag]
        if tag in _NUMBERS:
            return self._number(_NUMBERS[tag])
        if tag not in _SIZED:
            raise CheckpointError(f"{self.path.name}: holds a MessagePack item of an unexpected kind ({tag:#x})")
        code, kind = _SIZED[tag]
        length = self._number(code)
        if kind == "bin":
            begin = self.take(length)
            return slice(begin, begin + length)
        if kind == "str":
            return self._string(length)
        return self._array(length, depth) if kind == "array" else self._map(length, depth)

    def _string(self, length: int) -> str:
        begin = self.take(length)
        return self.data[begin : begin + length].decode("utf-8", "replace")

    def _map(self, length: int, depth: int) -> dict[str, Any]:
        self._check_length(length)
        result: dict[str, Any] = {}
        for _ in range(length):
            key = self.item(depth + 1)
            if not isinstance(key, str):
                raise CheckpointError(f"{self.path.name}: a record's field is not named by text")
            result[key] = self.item(depth + 1)
        return result

    def _array(self, length: int, depth: int) -> Any:
        """A list, or a big-endian f32 view when every element is one."""
        begin = self.position
        if length and length * FLOAT_STRIDE <= len(self.data) - begin and self.data[begin] == 0xCA:
            values = np.frombuffer(self.data, _FLOATS, length, begin)
            if (values["tag"] == 0xCA).all():
                self.take(length * FLOAT_STRIDE)
                return values["value"]
        self._check_length(length)
        return [self.item(depth + 1) for _ in range(length)]

    def _check_length(self, length: int) -> None:
        if length > MAX_ITEMS:
            raise CheckpointError(f"{self.path.name}: holds a record of {length} items, or values that are not f32")


def _collect(reader: _Reader, record: object, name: str, arrays: dict[str, NDArray[Any]]) -> None:
    """Add every parameter below `record`; skip constants and absent options (nil, or plain values)."""
    if isinstance(record, dict) and "param" in record:
        arrays[name] = _parameter(reader, name, record["param"])
    elif isinstance(record, dict):
        for key, value in record.items():
            _collect(reader, value, f"{name}.{key}" if name else key, arrays)
    elif isinstance(record, list):
        for index, value in enumerate(record):
            _collect(reader, value, f"{name}.{index}", arrays)


def _parameter(reader: _Reader, name: str, tensor: object) -> NDArray[Any]:
    """One tensor: {value, shape} up to Burn 0.13, {bytes, shape, dtype} from 0.14."""
    file = reader.path
    fields = tensor if isinstance(tensor, dict) else {}
    shape = fields.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise CheckpointError(f"{file.name}: tensor {name:.120} has no shape")
    values, data = fields.get("value"), fields.get("bytes")
    if isinstance(data, slice):
        array = tensor_at(file, name, reader.data, str(fields.get("dtype")), tuple(shape), data.start, data.stop)
    elif isinstance(values, np.ndarray):
        if math.prod(shape) != values.size or len(shape) > 4:
            raise CheckpointError(f"{file.name}: tensor {name:.120} of shape {shape!r:.80} has {values.size} values")
        array = values.astype(np.float32).reshape(shape)
    else:
        raise CheckpointError(f"{file.name}: tensor {name:.120} holds neither f32 values nor bytes")
    if _LINEAR.search(name) and array.ndim == 2:
        return np.ascontiguousarray(array.T)
    return array
