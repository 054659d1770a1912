"""The microservice: HTTP in, words out, with a WebAssembly guest and WASI-NN in between.

Importing it comes before importing NumPy wherever Wisp starts, so it settles which kernels NumPy's OpenBLAS takes: that library
does not know AMD's newest processors and gives them its AVX2 kernels; with the AVX-512 ones the encoder takes about a third less.
"""

import os
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
if _CPUINFO.exists() and all(word in _CPUINFO.read_text() for word in ("AuthenticAMD", "avx512bw")):
    os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")
