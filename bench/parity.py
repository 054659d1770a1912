"""`make parity`: greedy tokens of every reference clip against openai/whisper's, each difference with its gap.

A gap is how far apart, in log-probability, the target itself holds the two tokens where the sequences part: near zero,
f16 rounding turned a tie; a large one is a fault.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.app import Engine
from service.features import HOP_LENGTH, log_mel_spectrogram
from service.guest_cache import user_cache_folder
from service.settings import Settings
from service.transcriber import Transcriber

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 600.0
NEAR_TIE = 0.02  # log-probability
KINDS = {"decode-timestamps": {}, "decode-no-timestamps": {"without_timestamps": True}}


@dataclass(frozen=True)
class Difference:
    """Where a clip's tokens part from the reference's: at sampled token `position`, `ours` instead of `theirs`."""

    kind: str
    file: str
    position: int
    ours: int
    theirs: int
    gap: float  # log-probability, see the module's head


class FirstWindow(Exception):
    """Enough has been heard."""


class Target:
    """tiny_en on one target, called as `whisper.decode` is."""

    def __init__(self, transcriber: Transcriber) -> None:
        self.model, self.guest = transcriber.model, transcriber.guest
        self.tokens: dict[str, Any] = self.model.tokenizer.guest_tokens()
        self.dims = {
            name: getattr(self.model.dims, name) for name in ("n_mels", "n_audio_ctx", "n_vocab", "n_text_ctx")
        }

    def window(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Samples padded or cut to one window → (n_mels, n_frames) log-mel."""
        n_samples = 2 * self.model.dims.n_audio_ctx * HOP_LENGTH
        return log_mel_spectrogram(
            np.pad(samples[:n_samples], (0, max(0, n_samples - len(samples)))), self.model.dims.n_mels
        )

    def decode(self, mel: NDArray[np.float32], options: dict[str, Any]) -> list[int]:
        """The sampled tokens of the window, through the guest."""
        found: list[int] = []

        def on_event(event: dict[str, Any]) -> None:
            found.extend(event["tokens"])
            raise FirstWindow

        argument = {
            "model": self.model.name,
            "dims": self.dims,
            "is_multilingual": self.model.tokenizer.is_multilingual,
            "tokens": self.tokens,
            "options": {"language": "en", "temperature": 0.0, **options},
        }
        try:
            self.guest.run(argument, [mel.T.tobytes()], self.model.graphs, on_event, deadline_s=DEADLINE_S)
        except FirstWindow:
            return found
        raise RuntimeError("the guest gave no window")

    def gap(self, mel: NDArray[np.float32], given: list[int], ours: int, theirs: int) -> float:
        """How much likelier `ours` is than `theirs` after `given`; text against timestamps as the rule sums them."""
        graphs, name = self.model.graphs, self.model.name
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
        begin = self.tokens["timestamp_begin"]

        def weight(token: int) -> float:
            if (ours < begin) == (theirs < begin) or token < begin:
                return float(logits[token])
            return float(np.log(np.exp(logits[begin:] - logits.max()).sum()) + logits.max())

        return weight(ours) - weight(theirs)


def differences(
    target: Target, shared: Path, kinds: dict[str, Any], files: set[str] | None = None
) -> Iterator[Difference | None]:
    """For every reference clip (or those named in `files`): None if its tokens are identical, else where they part."""
    import soundfile

    for kind, options in kinds.items():
        for line in (shared / "expected" / f"{kind}.jsonl").read_text().splitlines():
            reference = json.loads(line)
            if files is not None and reference["file"] not in files:
                continue
            samples, _ = soundfile.read(shared / "speech" / reference["file"], dtype="float32")
            mel = target.window(samples)
            eot = target.tokens["eot"]
            ours, theirs = [*target.decode(mel, options), eot], [*reference["tokens"], eot]
            if ours == theirs:
                yield None
                continue
            at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
            prompt = [target.tokens["sot"], *([target.tokens["no_timestamps"]] if options else [])]
            gap = target.gap(mel, [*prompt, *theirs[:at]], ours[at], theirs[at])
            yield Difference(kind, reference["file"], at, ours[at], theirs[at], gap)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make parity", description=__doc__)
    parser.add_argument("--target", choices=("cpu", "gpu"), default="gpu")
    shared = Path(os.environ.get("WISP_SHARED", ROOT.parent / "shared"))
    parser.add_argument("--shared", type=Path, default=shared, help="folder with models/tiny_en, speech and expected")
    options = parser.parse_args()
    settings = Settings(model=str(options.shared / "models" / "tiny_en"), target=options.target)
    engine = Engine(settings, cache_folder=user_cache_folder())
    found = list(differences(Target(engine.load()), options.shared, KINDS))
    engine.close()
    parted = [difference for difference in found if difference is not None]
    for difference in parted:
        sys.stdout.write(f"{difference}\n")
    same = len(found) - len(parted)
    sys.stdout.write(f"{options.target}: {same} of {len(found)} identical ({100 * same / len(found):.1f} %)\n")
    sys.exit(any(abs(difference.gap) >= NEAR_TIE for difference in parted) or same < 0.98 * len(found))


if __name__ == "__main__":
    main()
