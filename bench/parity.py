"""`make parity`: replays every call of openai/whisper recorded in `../shared/expected` and lists each difference.

A case is a clip and a way to transcribe it. The CPU target computes in f32 and must match everything, including
probabilities. WebGPU rounds the cross-attention's keys and values to 16 bits and must match the tokens, texts and times
of 98 % of the cases; where tokens differ, they must be nearly tied. The gap measures that: the difference in
log-probability, on the target itself, between the two tokens at which the sequences diverge, or between two finished
beams, each by the mean of its tokens, as beams are ranked.
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from bench.engines import SHARED
from bench.reference import Case, Mel, Samples, Whisper, cases, differences
from service.audio.log_mel import log_mel_frames
from service.guest.code_cache import user_cache_folder
from service.http.app import Engine
from service.settings import Settings

NEAR_TIE = 0.02  # log-probability


@dataclass(frozen=True)
class Difference:
    """A case that differs from the reference, and where: `ours` instead of `theirs` after `position` tokens of the
    window at `seek` frames. Position −1 and a gap of NaN mean that the tokens are the same."""

    case: Case
    what: str
    seek: int = 0
    position: int = -1
    ours: int = -1
    theirs: int = -1
    gap: float = math.nan  # in log-probability, see the module's docstring

    @property
    def is_near_tie(self) -> bool:
        """Whether rounding alone can explain it."""
        return abs(self.gap) < NEAR_TIE

    def __str__(self) -> str:
        where = f"seek {self.seek}, token {self.position}: {self.ours} for {self.theirs}, gap {self.gap:+.4f}"
        return f"{self.case.kind} {self.case.name}: {self.what if self.position < 0 else where}"


def compare(whisper: Whisper, case: Case, shared: Path, *, numbers: bool) -> Difference | None:
    """None if the result is the reference's."""
    samples = case.samples(shared)
    said = whisper.answer(case, samples)
    found = differences(case, said, numbers=numbers)
    return _parting(whisper, case, samples, said, found[0]) if found else None


def _parting(whisper: Whisper, case: Case, samples: Samples, said: dict[str, Any], what: str) -> Difference:
    """The first token that differs."""
    eot = whisper.tokens["eot"]
    for window in said["windows"] if case.is_greedy else []:
        seek = window["seek"]
        # A transcription's last tokens, after its last pair of timestamps, are in no segment.
        theirs = [*case.answer["tokens"], eot] if case.is_decode else _tokens_at(case, seek)
        ours = [*window["tokens"], eot]
        at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
        if at is None:
            continue
        if "beam_size" in case.options:
            gap = float(window["avg_logprob"] - case.answer["avg_logprob"])
        else:
            mel = whisper.mel(samples) if case.is_decode else _mel_at(whisper, samples, seek)
            given = [*_prompt(whisper, case, seek), *theirs[:at]]
            gap = _gap(whisper, mel, given, ours[at], theirs[at])
        return Difference(case, what, seek, at, ours[at], theirs[at], gap)
    return Difference(case, what)


def _tokens_at(case: Case, seek: int) -> list[int]:
    segments = case.answer["segments"]
    return [token for segment in segments if segment["seek"] == seek for token in segment["tokens"]]


def _mel_at(whisper: Whisper, samples: Samples, seek: int) -> Mel:
    """The window at `seek` as the guest makes it, padded with zeros."""
    frames = np.concatenate(list(log_mel_frames(lambda: [samples], whisper.model.dims.n_mels)))
    window = frames[seek : seek + 2 * whisper.model.dims.n_audio_ctx]
    missing = 2 * whisper.model.dims.n_audio_ctx - len(window)
    return np.ascontiguousarray(np.pad(window, ((0, missing), (0, 0))).T)


def _prompt(whisper: Whisper, case: Case, seek: int) -> list[int]:
    """The tokens before the first sampled one of the window at `seek`, given that everything before matched."""
    tokens, tokenizer = whisper.tokens, whisper.model.tokenizer
    previous: list[int] = []
    if "initial_prompt" in case.options:
        previous += tokenizer.encode(" " + case.options["initial_prompt"].strip())
    if case.options.get("condition_on_previous_text", True):
        segments = case.answer.get("segments", ())
        previous += [token for segment in segments if segment["seek"] < seek for token in segment["tokens"]]
    previous = previous[-(whisper.model.dims.n_text_ctx // 2 - 1) :]
    no_timestamps = [tokens["no_timestamps"]] if case.options.get("without_timestamps") else []
    return [*([tokens["sot_prev"], *previous] if previous else []), tokens["sot"], *no_timestamps]


def _gap(whisper: Whisper, mel: Mel, given: list[int], ours: int, theirs: int) -> float:
    """How much likelier `ours` is than `theirs` after `given`; text against timestamps as the rule sums them."""
    graphs, name = whisper.model.graphs, whisper.model.name
    encoder = graphs[f"{name}/encoder"].init_execution_context({})
    decoder = graphs[f"{name}/decoder"].init_execution_context({0: encoder})
    try:
        encoder.set_input(0, mel[None])
        encoder.compute()
        decoder.set_input(0, np.array([0], np.int32))
        decoder.set_input(1, np.array([given], np.int32))
        decoder.compute()
        logits = decoder.get_output(0)[0].astype(np.float64)
    finally:
        decoder.close()
        encoder.close()
    begin = whisper.tokens["timestamp_begin"]

    def weight(token: int) -> float:
        if (ours < begin) == (theirs < begin) or token < begin:
            return float(logits[token])
        return float(np.log(np.exp(logits[begin:] - logits.max()).sum()) + logits.max())

    return weight(ours) - weight(theirs)


def run(whisper: Whisper, wanted: Iterator[Case], shared: Path, *, exact: bool) -> bool:
    """Compare all cases, report on stdout, and return whether the target passes."""
    n_cases: Counter[str] = Counter()
    parted: list[Difference] = []
    for kind, group in groupby(wanted, lambda case: case.kind):
        n_same = 0
        for case in group:
            n_cases[kind] += 1
            if (difference := compare(whisper, case, shared, numbers=exact)) is None:
                n_same += 1
            else:
                parted.append(difference)
                sys.stdout.write(f"{difference}\n")
        sys.stdout.write(f"{kind}: {n_same} of {n_cases[kind]} identical\n")
        sys.stdout.flush()
    same = n_cases.total() - len(parted)
    sys.stdout.write(f"all: {same} of {n_cases.total()} identical ({100 * same / n_cases.total():.1f} %)\n")
    if exact:
        return not parted
    return same >= 0.98 * n_cases.total() and all(difference.is_near_tie for difference in parted)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make parity", description=__doc__)
    parser.add_argument("--target", choices=("cpu", "gpu"), default="gpu")
    options = parser.parse_args()
    settings = Settings(model=str(SHARED / "models" / "tiny_en"), target=options.target)
    engine = Engine(settings, cache_folder=user_cache_folder())
    try:
        transcriber = engine.load()
        whisper = Whisper(transcriber.guest, transcriber.model)
        kept = run(whisper, cases(SHARED), SHARED, exact=options.target == "cpu")
    finally:
        engine.close()
    sys.exit(not kept)


if __name__ == "__main__":
    main()
