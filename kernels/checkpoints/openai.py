"""PyTorch files without torch: a zip of raw tensor storages and a pickle, of which only plain data is read.

OpenAI's .pt contains `dims` and `model_state_dict`, Hugging Face's pytorch_model.bin the tensors alone. The pickle is
never unpickled. A small interpreter runs the opcodes that tensors and dictionaries need, knows four names (the two that
rebuild tensors, OrderedDict, the storage classes) and rejects everything else.
"""

import math
import mmap
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.checkpoints.common import CheckpointError, Stored, UnknownFormat, brief, check_dims, map_file, tensor_at

MAX_PICKLE_BYTES = 16 << 20  # the largest Whisper's has 0.2 MB
LOCAL_HEADER_BYTES = 30  # of a zip entry, before its name and extra field
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error)
_STORAGES = {"FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"}


class _Refused(Exception):
    """The pickle does something no checkpoint needs; the message says what. Damage would fail the zip's checksum."""


@dataclass(frozen=True)
class _Name:
    """A global that the pickle names: never looked up, only compared."""

    module: str
    name: str


@dataclass(frozen=True)
class _Storage:
    """A storage that the pickle refers to: a file of the zip, with its number of elements."""

    dtype: str
    key: str
    n_elements: int


@dataclass(frozen=True)
class _Tensor:
    """The pickle's description of a tensor; offset and strides are in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class TorchFile:
    """A mapped torch.save file: the dictionary that its pickle builds, and the archive's entries."""

    path: Path
    data: mmap.mmap
    root: str  # prefix of the entries' names
    entries: Mapping[str, zipfile.ZipInfo]
    content: Mapping[Any, Any]

    def tensors(self, state: Mapping[Any, Any]) -> dict[str, NDArray[Any]]:
        """The tensors of a state dictionary in it, as views if rows are in order. Raises CheckpointError."""
        arrays: dict[str, NDArray[Any]] = {}
        for name, tensor in state.items():
            if not isinstance(name, str) or not isinstance(tensor, _Tensor):
                raise CheckpointError(f"{self.path.name}: {brief(name)} is not a tensor")
            entry = self.entries.get(f"{self.root}data/{tensor.storage.key}")
            if entry is None:
                raise CheckpointError(f"{self.path.name}: the data of tensor {name:.120} is missing")
            storage = _storage(self.path, name, self.data, entry, tensor.storage)
            arrays[name] = _view(self.path, name, storage, tensor)
        return arrays


def read_torch(weights: Path, config: Path) -> Stored:
    """The tensors of OpenAI's checkpoint, or of Hugging Face's with its config.json.

    Raises CheckpointError unless the file is whole and consistent; UnknownFormat if it isn't a Whisper.
    """
    file = open_torch(weights)
    dims, state = file.content.get("dims"), file.content.get("model_state_dict")
    if isinstance(dims, dict) and isinstance(state, dict):
        ignored = frozenset({"decoder.mask", "alignment_heads"})
        return Stored(check_dims(weights, dims), file.tensors(state), lambda name: name, ignored, (file.data,))
    if "model.encoder.conv1.weight" not in file.content:
        raise UnknownFormat(f"{weights.name}: holds neither OpenAI's dims and model_state_dict nor a Whisper's tensors")
    from kernels.checkpoints.huggingface import described

    return described(config, file.tensors(file.content), (file.data,))


def open_torch(weights: Path) -> TorchFile:
    """A torch.save file with a dictionary. Raises CheckpointError, UnknownFormat for other archives."""
    data = map_file(weights)
    try:
        with zipfile.ZipFile(weights) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            root = next((name[: -len("data.pkl")] for name in entries if name.endswith("data.pkl")), None)
            if root is None:
                kind = "NumPy arrays, as MLX has" if all(name.endswith(".npy") for name in entries) else "other things"
                raise UnknownFormat(f"{weights.name}: has no data.pkl: it is a zip archive of {kind}")
            if f"{root}constants.pkl" in entries:
                raise UnknownFormat(f"{weights.name}: is a TorchScript program")
            entry = entries[f"{root}data.pkl"]
            if entry.file_size > MAX_PICKLE_BYTES:
                raise CheckpointError(f"{weights.name}: its pickle of {entry.file_size} bytes is too large")
            with archive.open(entry) as file:
                pickled = file.read(MAX_PICKLE_BYTES)
    except CheckpointError:
        raise
    except (*_ZIP_ERRORS, OSError, EOFError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{weights.name}: is not a whole zip archive ({error})") from None
    try:
        content = _run(pickled)
    except _Refused as refusal:
        raise UnknownFormat(f"{weights.name}: its pickle {refusal}") from None
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError, AttributeError) as error:
        raise CheckpointError(f"{weights.name}: its pickle is damaged ({error!s:.80})") from None
    if not isinstance(content, dict):
        raise UnknownFormat(f"{weights.name}: contains no dictionary of tensors")
    return TorchFile(weights, data, root, entries, content)


def _storage(path: Path, name: str, data: mmap.mmap, entry: zipfile.ZipInfo, storage: _Storage) -> NDArray[Any]:
    """A storage's elements in the mapped file. Only uncompressed ones, as torch writes them, are accepted."""
    at = entry.header_offset
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or at + LOCAL_HEADER_BYTES > len(data):
        raise CheckpointError(f"{path.name}: the data of tensor {name:.120} is compressed or damaged")
    magic, name_length, extra_length = struct.unpack_from("<4s22xHH", data, at)
    if magic != b"PK\x03\x04":
        raise CheckpointError(f"{path.name}: the data of tensor {name:.120} is not at its place in the archive")
    begin = at + LOCAL_HEADER_BYTES + name_length + extra_length
    return tensor_at(path, name, data, storage.dtype, (storage.n_elements,), begin, begin + entry.file_size)


def _view(path: Path, name: str, storage: NDArray[Any], tensor: _Tensor) -> NDArray[Any]:
    """The tensor's elements in its storage, after checking that they are inside it."""
    shape, strides = tensor.shape, tensor.strides
    numbers = (tensor.offset, *shape, *strides)
    sizes_are_whole = all(type(number) is int and 0 <= number <= len(storage) for number in numbers)
    if not sizes_are_whole or len(shape) != len(strides) or len(shape) > 4 or 0 in shape:
        raise CheckpointError(f"{path.name}: tensor {name:.120} has an impossible shape or place {brief(shape)}")
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if last >= len(storage) or math.prod(shape) > len(storage):
        raise CheckpointError(f"{path.name}: tensor {name:.120} of shape {shape!r:.80} reaches past its storage")
    bytes_between = tuple(stride * storage.itemsize for stride in strides)
    return np.ascontiguousarray(np.lib.stride_tricks.as_strided(storage[tensor.offset :], shape, bytes_between))


def _run(pickled: bytes) -> object:
    """What the pickle builds: dictionaries, lists, tuples, text, numbers, names, storages, tensors. Raises _Refused."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop(count: int) -> list[Any]:
        if len(stack) - count < (marks[-1] if marks else 0):
            raise _Refused("pops from an empty stack")
        taken = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return taken

    def pop_to_mark() -> list[Any]:
        return pop(len(stack) - marks.pop()) if marks else pop(len(stack) + 1)

    def fill(keys_and_values: list[Any]) -> None:
        target = stack[-1]
        if type(target) is not dict:
            raise _Refused("sets items of something that isn't a dictionary")
        for key, value in zip(keys_and_values[::2], keys_and_values[1::2], strict=True):
            if not isinstance(key, str | int):
                raise _Refused("has a key that is neither text nor a number")
            target[key] = value

    for opcode, argument, _ in pickletools.genops(pickled):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return pop(1)[0]
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(pop(int(opcode.name[-1]))))
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "SETITEM":
                fill(pop(2))
            case "SETITEMS":
                fill(pop_to_mark())
            case "BINPUT" | "LONG_BINPUT":
                memo[int(argument or 0)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[int(argument or 0)])
            case "GLOBAL":
                stack.append(_Name(*str(argument).split(" ", 1)))
            case "STACK_GLOBAL":
                module, name = pop(2)
                if not isinstance(module, str) or not isinstance(name, str):
                    raise _Refused("names a global with something that isn't text")
                stack.append(_Name(module, name))
            case "BINPERSID":
                stack.append(_persistent(pop(1)[0]))
            case "REDUCE":
                stack.append(_reduce(*pop(2)))
            case "BUILD":  # a state_dict carries version numbers as an attribute, which are not needed
                pop(1)
            case _:
                raise _Refused(f"uses the operation {opcode.name}, which no checkpoint needs")
    raise _Refused("has no end")


def _persistent(reference: Any) -> _Storage:
    """A reference to a storage, as torch.save writes it: ("storage", class, key, device, number of elements)."""
    kind, storage, key, _, n_elements = reference
    dtype = _STORAGES.get(storage.name) if isinstance(storage, _Name) and storage.module == "torch" else None
    if kind != "storage" or dtype is None:
        found = storage.name if isinstance(storage, _Name) else brief(storage)
        raise _Refused(f"refers to a storage of {found:.80}, expected float, half or bfloat16")
    if not isinstance(key, str) or type(n_elements) is not int or n_elements < 0:
        raise _Refused("refers to a storage with an invalid key or size")
    return _Storage(dtype, key, n_elements)


def _reduce(function: Any, arguments: Any) -> object:
    """The result of a call: an ordered dictionary or a tensor. Raises _Refused for any other function."""
    known: dict[tuple[str, str], Callable[..., object]] = {
        ("collections", "OrderedDict"): _ordered_dict,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): lambda tensor, requires_grad, hooks: tensor,
    }
    call = known.get((function.module, function.name)) if isinstance(function, _Name) else None
    if call is None:
        called = f"{function.module}.{function.name}" if isinstance(function, _Name) else type(function).__name__
        raise _Refused(f"calls {called:.80}, which no checkpoint needs")
    return call(*arguments)


def _ordered_dict() -> dict[Any, Any]:
    """An empty dictionary; later operations fill it and check its keys. Unlike Python's, it takes no items."""
    return {}


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise _Refused("rebuilds a tensor from something that isn't a storage")
    return _Tensor(storage, offset, shape, strides)
