"""The speakers: espeak-ng, flite, festival and SVOX Pico voices, each changed a little for every passage.

Half of espeak-ng's are nobody that comes with it: a variant file made at random, in the words of its own variants.
"""

import math
import random
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

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
MADE_VARIANT = "made"
FLITE = ("slt", "rms", "awb")
HELD_OUT_FLITE = ("kal16",)
PICO = ("en-US", "en-GB")
FESTIVAL = ("ked_diphone", "ked_diphone", "ked_diphone", "cmu_us_slt_arctic_hts")


@dataclass(frozen=True)
class Voice:
    """A speaker for one passage. `size` resamples the voice: above 1 is a shorter vocal tract, higher and faster."""

    engine: str
    name: str
    rate: float  # 1 is the engine's usual speed
    pitch: int  # espeak's 0–99; of flite's and pico's usual pitch, percent; festival's diphones' mean, Hz
    size: float
    variant: str = ""  # an espeak-ng variant file's text, for a voice that espeak-ng does not come with

    def label(self) -> str:
        """What the manifest calls it."""
        return f"{self.engine}:{self.name}"


def choose(rng: random.Random, held_out: bool = False) -> Voice:
    """A random speaker, one that training never hears if `held_out`, as often as the limits in it say."""
    draw = rng.random()
    if held_out:
        if draw < 0.3:
            return Voice("flite", rng.choice(HELD_OUT_FLITE), rng.uniform(0.85, 1.15), 100, rng.uniform(0.95, 1.05))
        name = f"{rng.choice(ACCENTS)}+{rng.choice(HELD_OUT_VARIANTS)}"
        return Voice("espeak", name, rng.uniform(0.8, 1.15), rng.randrange(35, 65), 1.0)
    size = min(1.3, max(0.78, rng.gauss(1.0, 0.11)))
    if draw < 0.24:
        name = f"{rng.choice(ACCENTS)}+{rng.choice(VARIANTS)}"
        return Voice("espeak", name, rng.uniform(0.7, 1.3) / size, rng.randrange(15, 90), size)
    if draw < 0.48:
        name = f"{rng.choice(ACCENTS)}+{MADE_VARIANT}"
        return Voice("espeak", name, rng.uniform(0.7, 1.3), rng.randrange(15, 90), 1.0, made_variant(rng))
    if draw < 0.65:
        return Voice("pico", rng.choice(PICO), rng.uniform(0.75, 1.3) / size, rng.randrange(70, 150), size)
    if draw < 0.84:
        return Voice("flite", rng.choice(FLITE), rng.uniform(0.75, 1.3) / size, rng.randrange(75, 145), size)
    return Voice("festival", rng.choice(FESTIVAL), rng.uniform(0.75, 1.3) / size, rng.randrange(80, 160), size)


def made_variant(rng: random.Random) -> str:
    """A speaker for espeak-ng, as its docs/voices.md describes one: pitch, formants, voicing, breath, roughness."""
    low = rng.uniform(65, 190)
    lines = ["language variant", f"name {MADE_VARIANT}", f"pitch {low:.0f} {low * rng.uniform(1.15, 1.7):.0f}"]
    if rng.random() < 0.2:
        lines.append(f"klatt {rng.choice((1, 2, 3, 4, 6))}")
    tract = math.exp(rng.gauss(0.0, 0.1))
    for formant in range(9):
        frequency = 100 * math.exp(rng.gauss(0.0, 0.05)) * tract
        height, width = rng.uniform(55, 130), rng.uniform(60, 160)
        lines.append(f"formant {formant} {frequency:.0f} {height:.0f} {width:.0f}")
    for chance, line in (
        (0.5, f"voicing {rng.uniform(50, 170):.0f}"),
        (0.5, f"consonants {rng.uniform(50, 150):.0f} {rng.uniform(60, 150):.0f}"),
        (0.4, f"roughness {rng.randrange(0, 6)}"),
        (0.4, f"flutter {rng.randrange(0, 15)}"),
        (0.3, f"echo {rng.randrange(10, 140)} {rng.randrange(3, 25)}"),
        (0.3, f"intonation {rng.randrange(1, 5)}"),
        (0.2, f"breath {' '.join(str(rng.randrange(0, 12)) for _ in range(8))}"),
        (0.4, f"tone 600 {rng.randrange(120, 256)} 1200 {rng.randrange(60, 200)} 2000 {rng.randrange(30, 200)}"),
        (0.3, f"stressAmp {' '.join(str(rng.randrange(15, 26)) for _ in range(8))}"),
    ):
        if rng.random() < chance:
            lines.append(line)
    return "\n".join(lines) + "\n"


def espeak_data(folder: Path, variant: str) -> list[str]:
    """espeak-ng's option for a data folder that has `variant` beside its own voices; made of links under `folder`."""
    said = subprocess.run(["espeak-ng", "--version"], check=True, capture_output=True, text=True).stdout
    own = Path(said.rpartition("Data at: ")[2].strip())
    data = folder / "espeak-ng-data"
    (data / "voices").mkdir(parents=True)
    for path in own.iterdir():
        if path.name != "voices":
            (data / path.name).symlink_to(path)
    (data / "voices" / "!v").mkdir()
    (data / "voices" / "!v" / MADE_VARIANT).write_text(variant)
    return [f"--path={folder}"]


def pico_samples(text: str, voice: Voice) -> NDArray[np.int16]:
    """(n_samples,) at 16 kHz, which is what Pico gives."""
    import ttspico  # built with a C compiler when it is installed, and only needed here

    engine = ttspico.TtsEngine(voice.name)
    engine.rate, engine.pitch = int(100 * voice.rate), voice.pitch
    return np.frombuffer(engine.speak(text), dtype=np.int16)


def speak(texts: list[str], voice: Voice) -> list[Floats]:
    """Each text spoken by `voice`, (n_samples,) at 16 kHz, trimmed to 50 ms of silence at each end."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        files = [Path(folder) / f"{index}.wav" for index in range(len(texts))]
        if voice.engine == "festival":
            stretch = f"(Parameter.set 'Duration_Stretch {1 / voice.rate:.3f})"
            lines = [f"(voice_{voice.name})", stretch]
            if "diphone" in voice.name:
                lines.append(
                    f"(set! int_lr_params '((target_f0_mean {voice.pitch}) (target_f0_std {voice.pitch // 8}) "
                    "(model_f0_mean 170) (model_f0_std 34)))"
                )
            for text, file in zip(texts, files, strict=True):
                lines.append(f'(utt.save.wave (utt.synth (Utterance Text "{text}")) "{file}" \'riff)')
            script = Path(folder) / "speak.scm"
            script.write_text("\n".join(lines))
            subprocess.run(["festival", "-b", str(script)], check=True, capture_output=True)
        data = espeak_data(Path(folder), voice.variant) if voice.variant else []
        for text, file in zip(texts, files, strict=True):
            if voice.engine == "espeak":
                options = [
                    *data,
                    "-v",
                    voice.name,
                    "-s",
                    str(int(165 * voice.rate)),
                    "-p",
                    str(voice.pitch),
                    "-w",
                    str(file),
                ]
                subprocess.run(["espeak-ng", *options, "--", text], check=True, capture_output=True)
            elif voice.engine == "flite":
                stretch = f"duration_stretch={1 / voice.rate:.3f}"
                changed = ["--setf", stretch, "--setf", f"f0_shift={voice.pitch / 100:.2f}"]
                options = ["-voice", voice.name, *changed, "-t", text, "-o", str(file)]
                subprocess.run(["flite", *options], check=True, capture_output=True)
            elif voice.engine == "pico":
                soundfile.write(file, pico_samples(text, voice), SAMPLE_RATE, subtype="PCM_16")
        return [_trimmed(file, voice.size) for file in files]


def _trimmed(file: Path, size: float) -> Floats:
    samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    audio = soxr.resample(samples[:, 0], rate * size, SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(audio) > 0.02 * np.abs(audio).max(initial=1e-6))
    if len(loud) == 0:
        return np.zeros(SAMPLE_RATE // 10, dtype=np.float32)
    keep = SAMPLE_RATE // 20
    return np.asarray(audio[max(0, loud[0] - keep) : loud[-1] + keep], dtype=np.float32)
