"""The speakers: espeak-ng, flite and festival voices, each changed a little for every passage."""

import random
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from tools.train.features import SAMPLE_RATE, Floats

ACCENT_NAMES = """en-us en-us en-us en-gb en-gb-x-rp en-gb-scotland en-gb-x-gbclan en-gb-x-gbcwmd en-029 en-us-nyc"""
ACCENTS = ACCENT_NAMES.split()
VARIANT_NAMES = """
adam Alex Alicia Andy Annie antonio aunty belinda benjamin boris caleb david Denis Diogo ed edward edward2
Gene Gene2 gustave Henrique iven iven2 iven3 iven4 Jacky john kaukovalta Lee marcelo Marco Mario max michel
miguel Mike Nguyen pablo paul pedro quincy rob robert zac anika AnxiousAndy f1 f2 f4 f5 grandpa grandma klatt
klatt2 klatt3 klatt4 m1 m2 m3 m4 m6 m7 m8 norbert sandro shelby travis whisper whisperf croak"""
VARIANTS = VARIANT_NAMES.split()
HELD_OUT_VARIANTS = ("Andrea", "Michael", "f3", "m5", "steph", "victor", "Hugo", "linda", "klatt5")
FLITE = ("slt", "rms", "awb")
HELD_OUT_FLITE = ("kal16",)
FESTIVAL = ("cmu_us_slt_arctic_hts", "ked_diphone")


@dataclass(frozen=True)
class Voice:
    """A speaker for one passage. `size` resamples the voice: above 1 is a shorter vocal tract, higher and faster."""

    engine: str
    name: str
    rate: float  # 1 is the engine's usual speed
    pitch: int  # espeak's 0–99; the other engines ignore it
    size: float

    def label(self) -> str:
        """What the manifest calls it."""
        return f"{self.engine}:{self.name}"


def choose(rng: random.Random, held_out: bool = False) -> Voice:
    """A random speaker: 70 % espeak, 24 % flite, 6 % festival; or, held out, one that training never hears."""
    draw = rng.random()
    if held_out:
        if draw < 0.3:
            return Voice("flite", rng.choice(HELD_OUT_FLITE), rng.uniform(0.85, 1.15), 50, rng.uniform(0.95, 1.05))
        name = f"{rng.choice(ACCENTS)}+{rng.choice(HELD_OUT_VARIANTS)}"
        return Voice("espeak", name, rng.uniform(0.8, 1.15), rng.randrange(35, 65), 1.0)
    size = min(1.3, max(0.78, rng.gauss(1.0, 0.1)))
    if draw < 0.7:
        name = f"{rng.choice(ACCENTS)}+{rng.choice(VARIANTS)}"
        return Voice("espeak", name, rng.uniform(0.7, 1.3) / size, rng.randrange(15, 90), size)
    if draw < 0.94:
        return Voice("flite", rng.choice(FLITE), rng.uniform(0.75, 1.3) / size, 50, size)
    return Voice("festival", rng.choice(FESTIVAL), rng.uniform(0.75, 1.3) / size, 50, size)


def speak(texts: list[str], voice: Voice) -> list[Floats]:
    """Each text spoken by `voice`, (n_samples,) at 16 kHz, trimmed to 50 ms of silence at each end."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        files = [Path(folder) / f"{index}.wav" for index in range(len(texts))]
        if voice.engine == "festival":
            stretch = f"(Parameter.set 'Duration_Stretch {1 / voice.rate:.3f})"
            lines = [f"(voice_{voice.name})", stretch]
            for text, file in zip(texts, files, strict=True):
                lines.append(f'(utt.save.wave (utt.synth (Utterance Text "{text}")) "{file}" \'riff)')
            script = Path(folder) / "speak.scm"
            script.write_text("\n".join(lines))
            subprocess.run(["festival", "-b", str(script)], check=True, capture_output=True)
        for text, file in zip(texts, files, strict=True):
            if voice.engine == "espeak":
                options = ["-v", voice.name, "-s", str(int(165 * voice.rate)), "-p", str(voice.pitch), "-w", str(file)]
                subprocess.run(["espeak-ng", *options, "--", text], check=True, capture_output=True)
            elif voice.engine == "flite":
                stretch = f"duration_stretch={1 / voice.rate:.3f}"
                options = ["-voice", voice.name, "--setf", stretch, "-t", text, "-o", str(file)]
                subprocess.run(["flite", *options], check=True, capture_output=True)
        return [_trimmed(file, voice.size) for file in files]


def _trimmed(file: Path, size: float) -> Floats:
    samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    audio = soxr.resample(samples[:, 0], rate * size, SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(audio) > 0.02 * np.abs(audio).max(initial=1e-6))
    if len(loud) == 0:
        return np.zeros(SAMPLE_RATE // 10, dtype=np.float32)
    keep = SAMPLE_RATE // 20
    return np.asarray(audio[max(0, loud[0] - keep) : loud[-1] + keep], dtype=np.float32)
