"""Loads the C kernels (native/) for this machine: its instruction set and their arguments' layout."""

import ctypes
import platform
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

LIBRARY = Path(__file__).parents[2] / "assets" / "cpu-x86_64.so"
VARIANTS = {  # best first: the flags that /proc/cpuinfo must list for each
    "avx512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "fma", "f16c", "bmi2"},
    "avx2": {"avx2", "fma", "f16c", "bmi1", "bmi2"},
}
Pointer = ctypes.c_void_p
i32, i64 = ctypes.c_int32, ctypes.c_int64
FEW_ROWS = 24  # product.h's FEW: products of more rows need memory for the packed matrix


class Team(ctypes.Structure):
    """team.h: threads that share one call's work; all zeros except n_threads before the call."""

    _fields_ = [
        *(("ticket", ctypes.c_uint64), ("done", i64), ("over", i32), ("joined", i32), ("n_threads", i32)),
        *(("round", i32), ("work", Pointer), ("arguments", Pointer)),
    ]


class Matrix(ctypes.Structure):
    """product.h: a weight [n_out, n_in] in f16, f32 or int8, its bias or NULL, and the scales for int8."""

    _fields_ = [
        *(("values", Pointer), ("bias", Pointer), ("n_out", i32), ("n_in", i32), ("is_half", i32), ("unused", i32)),
        ("scales", Pointer),
    ]


class Norm(ctypes.Structure):
    """product.h: a layer norm's weight and bias, f32."""

    _fields_ = [("weight", Pointer), ("bias", Pointer)]


class Product(ctypes.Structure):
    """product.h: y = f(x · Wᵀ + b)."""

    _fields_ = [
        *(("x", Pointer), ("rows", i64), ("row_stride", i64), ("norm", Pointer), ("matrix", Pointer)),
        *(("scale", ctypes.c_float), ("then", i32), ("y", Pointer), ("head", i64), ("head_stride", i64)),
        *(("y_stride", i64), ("packed", Pointer), ("threads", Pointer), ("thread_floats", i64)),
    ]


class WindowAttention(ctypes.Structure):
    """attention.h: softmax(q · Kᵀ) · V over a whole window."""

    _fields_ = [
        *((name, Pointer) for name in ("q", "keys", "values", "y")),
        *((name, i64) for name in ("rows", "q_head", "n_keys", "n_head", "d")),
        *(("threads", Pointer), ("thread_floats", i64)),
    ]


class Block(ctypes.Structure):
    """model.h: a residual block."""

    _fields_ = [
        *(("attn_ln", Norm), ("query", Matrix), ("key", Matrix), ("value", Matrix), ("out", Matrix)),
        *(("cross_attn_ln", Norm), ("cross_query", Matrix), ("cross_key", Matrix), ("cross_value", Matrix)),
        *(("cross_out", Matrix), ("mlp_ln", Norm), ("mlp_up", Matrix), ("mlp_down", Matrix)),
    ]


class Model(ctypes.Structure):
    """model.h: a Whisper's sizes and weights."""

    _fields_ = [
        *((name, i32) for name in ("n_mels", "n_audio_ctx", "n_state", "n_audio_head", "n_audio_layer")),
        *((name, i32) for name in ("n_vocab", "n_text_ctx", "n_text_head", "n_text_layer", "unused")),
        *(("conv1", Matrix), ("conv2", Matrix), ("audio_positions", Pointer), ("encoder", Pointer), ("ln_post", Norm)),
        *(("token_embedding", Matrix), ("screen", Matrix)),
        *(("text_positions", Pointer), ("decoder", Pointer), ("ln", Norm)),
    ]


class Encoding(ctypes.Structure):
    """encoder.h: one window."""

    _fields_ = [(name, Pointer) for name in ("model", "mel", "states", "cross", "scratch")]


class Decoding(ctypes.Structure):
    """decoder.h: a few sequences and their new tokens."""

    _fields_ = [
        *((name, Pointer) for name in ("model", "cross", "cache", "tokens")),
        *((name, i64) for name in ("n_sequences", "n_new", "n_past")),
        *((name, Pointer) for name in ("hidden", "logits", "queries", "scratch")),
    ]


class Screening(ctypes.Structure):
    """choice.h: a matrix, and its int8 copy."""

    _fields_ = [(name, Pointer) for name in ("from_", "values", "scales")]


class Likeliest(ctypes.Structure):
    """choice.h: the likeliest token of a range, or −1."""

    _fields_ = [("token", i32), ("logit", ctypes.c_float), ("sum", ctypes.c_float)]


class Choice(ctypes.Structure):
    """choice.h: which tokens may come next, and the likeliest of them."""

    _fields_ = [
        *((name, Pointer) for name in ("model", "hidden", "logits", "never", "near")),
        *((name, i32) for name in ("n_never", "text_from", "text_below", "time_from", "time_below")),
        *(("widest", ctypes.c_float), ("text", Likeliest), ("time", Likeliest)),
    ]


# In the order of cpu.c.
STRUCTURES = (Team, Matrix, Norm, Product, WindowAttention, Block, Model, Encoding, Decoding, Screening, Choice)
SIGNATURES = {  # name → result type, argument types
    "encoder_floats": (i64, (Pointer, i64)),
    "decoder_floats": (i64, (Pointer, i64, i64)),
    "cross_floats": (i64, (Pointer,)),
    "packed_floats": (i64, (i64, i64)),
    "size_of": (i64, (i64,)),
    "help": (None, (Pointer,)),
    "encode": (None, (Pointer, Pointer)),
    "append": (None, (Pointer, Pointer)),
    "multiply": (None, (Pointer, Pointer)),
    "attend_window": (None, (Pointer, Pointer)),
    "screen": (None, (Pointer, Pointer)),
    "choose": (None, (Pointer,)),
}


class Library:
    """One variant's functions, the SIGNATURES, as attributes. Other Python threads run during each call."""

    def __init__(self, variant: str) -> None:
        self.variant = variant
        loaded = ctypes.CDLL(str(LIBRARY))
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(loaded, f"{name}_{variant}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        if any(self.size_of(index) != ctypes.sizeof(structure) for index, structure in enumerate(STRUCTURES)):
            raise RuntimeError(f"{LIBRARY.name} wasn't built from these sources in kernels/cpu/native: run make native")

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Callable[..., int]: ...


def variants() -> list[str]:
    """The variants that this machine can run, best first; empty except on x86-64 Linux."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or not LIBRARY.is_file():
        return []
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            flags = set(line.partition(":")[2].split())
            return [variant for variant, needed in VARIANTS.items() if needed <= flags]
    return []


@cache
def load_library() -> Library | None:
    """The best variant that this machine can run, or None."""
    for variant in variants():
        return Library(variant)
    return None
