"""`make bench-together`: requests that encode or decode at the same time on WebGPU, against the same ones in turn.

Each has its own encoder result and runs chunks of run-ahead steps, as the guest does. A ratio above 1 is the gain in
throughput from running together; the results must be the same.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.engines import SHARED
from kernels.checkpoints.load import load_checkpoint
from kernels.webgpu.device import open_device
from kernels.webgpu.model import GpuModel
from service.models.tokenizer import Tokenizer

CHUNK = 8  # steps per compute: the guest's run-ahead


class Bench:
    """A model on the device, with n_audio windows of noise: the content does not affect the time."""

    def __init__(self, model: Path, n_tokens: int, n_audio: int, windows: int | None = None) -> None:
        checkpoint = load_checkpoint(model)
        dims = checkpoint.dims
        self.n_tokens, self.device = n_tokens, open_device()
        self.model = GpuModel(checkpoint, self.device, windows)
        self.encoders = {i: self.model.encoder.init_execution_context({}) for i in range(n_audio)}
        rng = np.random.default_rng(0)
        for encoder in self.encoders.values():
            encoder.set_input(0, rng.standard_normal((1, dims.n_mels, 2 * dims.n_audio_ctx)).astype(np.float32))
            encoder.compute()
        tokenizer = Tokenizer(checkpoint.tokenizer_json, dims.n_vocab, checkpoint.is_multilingual)
        tokens = tokenizer.guest_tokens()
        suppress = [*tokens["suppress"], tokens["eot"]]  # no sequence ends early
        rules = [CHUNK, 1, tokens["eot"], tokens["timestamp_begin"], tokens["no_timestamps"], 50, len(suppress), 0]
        self.rules = np.array([*rules, *suppress], np.int32)
        self.start: list[int] = [tokens["sot"]]

    def encode(self, number: int) -> None:
        """Compute one window again."""
        self.encoders[number].compute()

    def states(self, n_requests: int) -> list[bytes]:
        """The results of `n_requests` windows."""
        return [self.encoders[number].get_output(0).tobytes() for number in range(n_requests)]

    def decode(self, number: int) -> list[int]:
        """The tokens that one request chooses."""
        context = self.model.decoder.init_execution_context(self.encoders)
        context.set_input(0, np.array([number], np.int32))
        context.set_input(3, self.rules)
        new, chosen = self.start, list[int]()
        while len(chosen) < self.n_tokens:
            context.set_input(1, np.array([new], np.int32))
            context.compute()
            found: NDArray[np.int32] = context.get_output(1)[0]
            chosen += found.tolist()
            new = chosen[-1:]
        context.close()
        return chosen

    def ratio(self, work: Callable[[int], object], n_requests: int) -> float:
        """Seconds in turn over seconds together. Raises RuntimeError if the results differ."""
        begin = time.perf_counter()
        in_turn = [work(number) for number in range(n_requests)]
        seconds, states = time.perf_counter() - begin, self.states(n_requests)
        with ThreadPoolExecutor(n_requests) as threads:
            begin = time.perf_counter()
            together = list(threads.map(work, range(n_requests)))
            end = time.perf_counter()
        if together != in_turn or self.states(n_requests) != states:
            raise RuntimeError("together they give something else")
        return seconds / (end - begin)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-together", description=__doc__)
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "tiny_en")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--tokens", type=int, default=32, help="of each request")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--windows", type=int, help="computed together at most, chosen by the adapter if not given")
    options = parser.parse_args()
    bench = Bench(options.model, options.tokens, max(options.requests), options.windows)
    bench.decode(0)  # the first launch of a kernel may compile it
    works: dict[str, Callable[[int], object]] = {"windows": bench.encode, "tokens": bench.decode}
    for what, work in works.items():
        for n_requests in options.requests:
            ratios = [bench.ratio(work, n_requests) for _ in range(options.rounds)]
            sys.stdout.write(
                f"{n_requests} requests: {statistics.median(ratios):.2f} × the {what} a second of one after the other\n"
            )
    bench.device.close()


if __name__ == "__main__":
    main()
