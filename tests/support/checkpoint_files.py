"""Writes small Whisper checkpoints in every format, as that format's own tools do, for the tests of the readers."""

import gzip
import io
import json
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from kernels.checkpoints.common import expected_shapes
from kernels.checkpoints.load import Dimensions

Arrays = dict[str, NDArray[Any]]
DIMS = Dimensions(4, 6, 8, 2, 1, 283, 10, 8, 2, 2)
PIECES = (b" a", b"th", b"the", b" the", b"in", b"an", b"and", b" and", b"er", b"")
TOKENS = [*(bytes([byte]) for byte in range(256)), *PIECES]
TOKENIZER = json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}})


def arrays_of(dtype: type = np.float16, dims: Dimensions = DIMS) -> Arrays:
    """Random values for every tensor of these dims under OpenAI's names, exact in bf16, so in every dtype."""
    rng = np.random.default_rng(0)
    return {name: (rng.integers(-64, 64, shape) / 32).astype(dtype) for name, shape in expected_shapes(dims).items()}


# One writer per format: (folder, arrays, dims) → the path to load.


def write_huggingface(folder: Path, arrays: Arrays, *, dims: Dimensions = DIMS) -> Path:
    parts = {
        "attn.query": "self_attn.q_proj",
        "attn.key": "self_attn.k_proj",
        "attn.value": "self_attn.v_proj",
        "attn.out": "self_attn.out_proj",
        "attn_ln": "self_attn_layer_norm",
        "cross_attn.query": "encoder_attn.q_proj",
        "cross_attn.key": "encoder_attn.k_proj",
        "cross_attn.value": "encoder_attn.v_proj",
        "cross_attn.out": "encoder_attn.out_proj",
        "cross_attn_ln": "encoder_attn_layer_norm",
        "mlp.0": "fc1",
        "mlp.2": "fc2",
        "mlp_ln": "final_layer_norm",
    }
    whole = {
        "encoder.positional_embedding": "model.encoder.embed_positions.weight",
        "decoder.positional_embedding": "model.decoder.embed_positions.weight",
        "decoder.token_embedding.weight": "model.decoder.embed_tokens.weight",
        "encoder.ln_post.weight": "model.encoder.layer_norm.weight",
        "encoder.ln_post.bias": "model.encoder.layer_norm.bias",
        "decoder.ln.weight": "model.decoder.layer_norm.weight",
        "decoder.ln.bias": "model.decoder.layer_norm.bias",
    }
    named: Arrays = {}
    for name, array in arrays.items():
        theirs = whole.get(name, f"model.{name}")
        if ".blocks." in name:
            half, _, layer, part = name.split(".", 3)
            stem, suffix = part.rsplit(".", 1)
            theirs = f"model.{half}.layers.{layer}.{parts[stem]}.{suffix}"
        named[theirs] = array
    save_file(named, folder / "model.safetensors")
    config = {
        "num_mel_bins": dims.n_mels,
        "max_source_positions": dims.n_audio_ctx,
        "d_model": dims.n_audio_state,
        "encoder_attention_heads": dims.n_audio_head,
        "encoder_layers": dims.n_audio_layer,
        "vocab_size": dims.n_vocab,
        "max_target_positions": dims.n_text_ctx,
        "decoder_attention_heads": dims.n_text_head,
        "decoder_layers": dims.n_text_layer,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(TOKENIZER)
    return folder


def burn_record(arrays: Arrays, encode: Callable[[NDArray[Any]], dict[str, Any]]) -> dict[str, Any]:
    """The nested record Burn writes: Linear weights [in, out], gamma and beta, absent options nil."""
    item: dict[str, Any] = {"encoder": {"n_mels": None}, "decoder": {"n_vocab": None}}
    for name, array in [*arrays.items(), ("decoder.mask", np.zeros((10, 10), np.float32))]:
        is_linear = name.endswith(".weight") and ("attn." in name or "mlp." in name)
        is_norm = "_ln." in name or ".ln" in name
        path = name.replace("mlp.0", "mlp.lin1").replace("mlp.2", "mlp.lin2")
        path = path.replace("token_embedding.weight", "token_embedding")
        if is_norm:
            path = path.replace(".weight", ".gamma").replace(".bias", ".beta")
        *parents, last = path.split(".")
        node = item
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = {"id": f"id-{name}", "param": encode(array.T if is_linear else array)}
        if last == "weight" and parents[-1] == "key":
            node["bias"] = None
        if is_norm:
            node["epsilon"] = None
    for half in item.values():
        half["blocks"] = [half["blocks"][str(layer)] for layer in range(len(half["blocks"]))]
    return {"metadata": {"float": "f32", "format": None}, "item": item, "_b": []}


def burn_values(array: NDArray[Any]) -> dict[str, Any]:
    return {"value": array.astype(np.float32).reshape(-1).tolist(), "shape": list(array.shape)}


def burn_bytes(array: NDArray[Any]) -> dict[str, Any]:
    return {"bytes": array.tobytes(), "shape": list(array.shape), "dtype": {2: "F16", 4: "F32"}[array.itemsize]}


def write_burn(
    folder: Path, arrays: Arrays, *, encode: Any = burn_bytes, zipped: bool = False, dims: Dimensions = DIMS
) -> Path:
    sizes = asdict(dims)
    config = {
        "audio_encoder_config": {name: sizes[name] for name in sizes if "audio" in name or "mels" in name},
        "text_decoder_config": {name: sizes[name] for name in sizes if "text" in name or "vocab" in name},
    }
    (folder / "small.cfg").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(TOKENIZER)
    packed = msgpack.packb(burn_record(arrays, encode), use_single_float=True)
    path = folder / ("small.mpk.gz" if zipped else "small.mpk")
    path.write_bytes(gzip.compress(packed) if zipped else packed)
    return path


def write_torch(folder: Path, arrays: Arrays, *, dims: Dimensions = DIMS) -> Path:
    """Hugging Face's pytorch_model.bin: the state dictionary alone, under its names."""
    write_huggingface(folder, arrays, dims=dims)
    renamed = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    path = write_openai(folder, renamed, content=lambda state: state)
    return path.rename(folder / "pytorch_model.bin")


def write_openai(
    folder: Path,
    arrays: Arrays,
    *,
    extra: Any = None,
    zipped: bool = False,
    dims: Dimensions = DIMS,
    content: Any = None,
) -> Path:
    """A .pt as torch.save writes it, with stand-ins for torch's names, which pickle only writes down."""
    codes = {"float16": "HalfStorage", "float32": "FloatStorage", "uint16": "BFloat16Storage"}
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in codes.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def rebuild(*arguments: object) -> None: ...

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = rebuild  # type: ignore[attr-defined]

    class Stored:
        def __init__(self, key: str, array: NDArray[Any]) -> None:
            self.reference = ("storage", getattr(torch, codes[array.dtype.name]), key, "cpu", array.size)

    class Tensor:
        def __init__(self, key: str, array: NDArray[Any]) -> None:
            strides = tuple(stride // array.itemsize for stride in array.strides)
            self.parts: tuple[Any, ...] = (Stored(key, array), 0, array.shape, strides, False, OrderedDict())

        def __reduce__(self) -> Any:
            return rebuild, self.parts

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> Any:
            return value.reference if isinstance(value, Stored) else None

    state = OrderedDict((name, Tensor(str(index), array)) for index, (name, array) in enumerate(arrays.items()))
    pickled = {"dims": asdict(dims), "model_state_dict": state} if content is None else content(state)
    if extra is not None:
        pickled["extra"] = extra
    buffer = io.BytesIO()
    before = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules |= {"torch": torch, "torch._utils": utils}
    try:
        Pickler(buffer, 2).dump(pickled)
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module
    path = folder / "small.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if zipped else zipfile.ZIP_STORED) as archive:
        archive.writestr("small/data.pkl", buffer.getvalue())
        archive.writestr("small/version", "3\n")
        for index, array in enumerate(arrays.values()):
            archive.writestr(f"small/data/{index}", np.ascontiguousarray(array).tobytes())
    (folder / "tokenizer.json").write_text(TOKENIZER)
    return path


def quantise_blocks(weights: NDArray[Any], kind: str) -> bytes:
    """f32 [..., 32 · n] as ggml's quantised types, by their formulas: the nearest of 16, 32 or 255 steps in a block."""
    x = np.asarray(weights, np.float32).reshape(-1, 32)
    largest = x[np.arange(len(x)), np.abs(x).argmax(axis=1)]
    if kind == "q8_0":
        d = np.abs(largest) / 127
        values = np.rint(x / np.where(d == 0, 1, d)[:, None]).astype(np.int8)
        return b"".join(np.float16(a).tobytes() + b.tobytes() for a, b in zip(d, values, strict=True))
    bits = int(kind[1])
    if kind.endswith("_0"):
        m = None
        d = largest / -(2 ** (bits - 1))
        values = x / np.where(d == 0, 1, d)[:, None] + 2 ** (bits - 1) + 0.5
    else:
        m = x.min(axis=1)
        d = (x.max(axis=1) - m) / (2**bits - 1)
        values = (x - m[:, None]) / np.where(d == 0, 1, d)[:, None] + 0.5
    whole = np.clip(values, 0, 2**bits - 1).astype(np.uint8)
    out = []
    for index, row in enumerate(whole):
        out.append(np.float16(d[index]).tobytes())
        if m is not None:
            out.append(np.float16(m[index]).tobytes())
        if bits == 5:
            out.append(np.packbits(row >> 4, bitorder="little").tobytes())
        out.append(((row[:16] & 15) | (row[16:] & 15) << 4).tobytes())
    return b"".join(out)


GGML_TYPES = {"q4_0": (2, 2), "q4_1": (3, 3), "q5_0": (6, 8), "q5_1": (7, 9), "q8_0": (8, 7)}  # a tensor's, the file's


def write_ggml(folder: Path, arrays: Arrays, *, kind: str | None = None, dims: Dimensions = DIMS) -> Path:
    """`kind`: the quantised type of matrices whose rows it divides, as whisper.cpp's quantize writes them."""
    order = ["n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer"]
    order += ["n_text_ctx", "n_text_state", "n_text_head", "n_text_layer", "n_mels"]
    half = next(iter(arrays.values())).dtype == np.float16
    ftype = int(half) if kind is None else 2000 + GGML_TYPES[kind][1]
    out = bytearray(struct.pack("<12i", 0x67676D6C, *(asdict(dims)[name] for name in order), ftype))
    out += struct.pack("<2i", dims.n_mels, 201) + np.zeros((dims.n_mels, 201), np.float32).tobytes()
    out += struct.pack("<i", len(TOKENS)) + b"".join(struct.pack("<i", len(token)) + token for token in TOKENS)
    for name, array in arrays.items():
        if name in ("encoder.conv1.bias", "encoder.conv2.bias"):
            array = array[:, None]
        is_matrix = array.ndim > 1 and not name.endswith(("bias", "positional_embedding"))
        is_quantised = kind is not None and is_matrix and array.ndim == 2 and array.shape[1] % 32 == 0
        number = GGML_TYPES[kind][0] if kind is not None and is_quantised else int(half and is_matrix)
        out += struct.pack("<3i", array.ndim, len(name), number)
        out += struct.pack(f"<{array.ndim}i", *reversed(array.shape)) + name.encode()
        if kind is not None and is_quantised:
            out += quantise_blocks(array, kind)
        else:
            out += array.astype(np.float16 if number else np.float32).tobytes()
    path = folder / "small.bin"
    path.write_bytes(out)
    return path


def ctranslate2_variables(arrays: Arrays, dims: Dimensions = DIMS) -> Arrays:
    """The variables of a WhisperSpec in f32 or f16: joined maps, gamma and beta, scalars."""
    named: Arrays = {}
    for name, array in arrays.items():
        path = name.replace(".blocks.", ".layer_")
        for ours, theirs in (
            ("cross_attn_ln", "attention.layer_norm"),
            ("attn_ln", "self_attention.layer_norm"),
            ("mlp_ln", "ffn.layer_norm"),
            ("ln_post", "layer_norm"),
            ("decoder.ln", "decoder.layer_norm"),
            ("mlp.0", "ffn.linear_0"),
            ("mlp.2", "ffn.linear_1"),
            ("cross_attn.query", "attention.linear_0"),
            ("cross_attn.out", "attention.linear_2"),
            (".attn.out", ".self_attention.linear_1"),
            ("token_embedding", "embeddings"),
            ("positional_embedding", "position_encodings.encodings"),
        ):
            path = path.replace(ours, theirs)
        if "layer_norm" in path:
            path = path.replace(".weight", ".gamma").replace(".bias", ".beta")
        if "attn." not in path:
            named[path.replace(".", "/")] = array
    for half, n_layer in (("encoder", dims.n_audio_layer), ("decoder", dims.n_text_layer)):
        for layer in range(n_layer):
            for attention, joined, parts in (
                ("attn", "self_attention/linear_0", ("query", "key", "value")),
                ("cross_attn", "attention/linear_1", ("key", "value")),
            ):
                for last in ("weight", "bias"):
                    names = [f"{half}.blocks.{layer}.{attention}.{part}.{last}" for part in parts]
                    like = arrays.get(names[-1])
                    if like is not None:
                        pieces = [arrays.get(name, np.zeros_like(like)) for name in names]
                        named[f"{half}/layer_{layer}/{joined}/{last}"] = np.concatenate(pieces)
    scalars = {
        "decoder/activation": np.int8(3),
        "decoder/alibi": np.int8(0),
        "decoder/alignment_heads": np.int16(1),
        "decoder/alignment_layer": np.int16(-1),
        "decoder/num_heads": np.int16(dims.n_text_head),
        "decoder/pre_norm": np.int8(1),
        "decoder/scale_embeddings": np.int8(0),
        "decoder/start_from_zero_embedding": np.int8(0),
        "encoder/num_heads": np.int16(dims.n_audio_head),
    }
    return dict(sorted((named | {name: np.array(value) for name, value in scalars.items()}).items()))


def ctranslate2_bytes(
    variables: Arrays,
    aliases: tuple[tuple[str, str], ...] = (("decoder/projection/weight", "decoder/embeddings/weight"),),
    *,
    version: int = 6,
    spec: str = "WhisperSpec",
    revision: int = 3,
) -> bytes:
    """A model.bin; arrays of uint16 are bf16's bits."""

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    types = ["float32", "int8", "int16", "int32", "float16", "uint16"]
    out = [struct.pack("<I", version), string(spec), struct.pack("<2I", revision, len(variables))]
    for name, array in variables.items():
        out += [string(name), struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)]
        out += [struct.pack("<BI", types.index(array.dtype.name), array.nbytes), array.tobytes()]
    out += [struct.pack("<I", len(aliases)), *(string(text) for pair in aliases for text in pair)]
    return b"".join(out)


def write_ctranslate2(folder: Path, arrays: Arrays, *, dims: Dimensions = DIMS) -> Path:
    path = folder / "model.bin"
    path.write_bytes(ctranslate2_bytes(ctranslate2_variables(arrays, dims)))
    (folder / "config.json").write_text('{"alignment_heads": [[1, 0], [1, 1]], "lang_ids": [259]}')
    (folder / "tokenizer.json").write_text(TOKENIZER)
    return path


Writer = Callable[[Path, Arrays], Path]
WRITERS: dict[str, Writer] = {
    "safetensors": write_huggingface,
    "mpk": write_burn,
    "mpk-values": lambda folder, arrays: write_burn(folder, arrays, encode=burn_values),
    "mpk.gz": lambda folder, arrays: write_burn(folder, arrays, zipped=True),
    "mpk.gz-values": lambda folder, arrays: write_burn(folder, arrays, encode=burn_values, zipped=True),
    "pt": write_openai,
    "torch": write_torch,
    "bin": write_ggml,
    "ctranslate2": write_ctranslate2,
}
