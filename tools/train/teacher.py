"""The teacher's audio states for every shard, and the unlabelled human clips as one more shard without text.

Beside `NAME.mel` this writes `NAME.states`: (n_frames // 2 of each utterance, 384) f16, end to end. A third of what
varies in them only tells the position in the window, and nearly all of that is a plain sum: `states.npz`
keeps the mean state of every position and the deviation that is left, and `.states` holds what is left over it. So a
target stays true when training puts an utterance somewhere else in the window (measured: 13 % error, 84 % without).
`bridge.npy` is the projection of what is left onto the student's width.
"""

import argparse
import functools
import json
import logging
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file

from tools.train.features import FLOOR, N_MELS, SAMPLE_RATE, Floats, log10_mel, whisper_scale
from tools.train.model import Dims, Encoder

WINDOW = 3000  # frames the teacher was trained on
TAIL = 100  # frames of silence after an utterance: the teacher never heard sound end at its window's end
BATCH_FRAMES = 12_000


def load_encoder(folder: Path) -> Encoder:
    """A Hugging Face Whisper folder → its encoder, in f32."""
    config = json.loads((folder / "config.json").read_text())
    dims = Dims(
        n_vocab=1,
        n_audio_ctx=config["max_source_positions"],
        n_audio_state=config["d_model"],
        n_audio_head=config["encoder_attention_heads"],
        n_audio_layer=config["encoder_layers"],
    )
    encoder = Encoder(dims)
    prefix = "model.encoder."
    weights = load_file(folder / "model.safetensors")
    own = {name.removeprefix(prefix): value.float() for name, value in weights.items() if name.startswith(prefix)}
    encoder.load_state_dict(own)
    encoder.eval()
    return encoder


@torch.no_grad()  # type: ignore[untyped-decorator]
def states(encoder: Encoder, mels: list[Floats], n_frames: int) -> list[Floats]:
    """Utterances, (frames, 80) raw log10 mel each → the states of each, (frames // 2, 384), in one batch."""
    batch = np.zeros((len(mels), n_frames, N_MELS), dtype=np.float32)
    for row, mel in zip(batch, mels, strict=True):
        row[:] = FLOOR
        row[: len(mel)] = mel
        row[:] = whisper_scale(row)
    device = encoder.conv1.weight.device
    with torch.autocast(device.type, dtype=torch.bfloat16):
        result = encoder(torch.from_numpy(batch).transpose(1, 2).to(device)).float().cpu().numpy()
    return [row[: len(mel) // 2] for row, mel in zip(result, mels, strict=True)]


def teach_shard(encoder: Encoder, mel_path: Path, mean: Floats, deviation: Floats) -> None:
    """Write the `.states` beside one shard of short utterances; `mean` (positions, 384), `deviation` (384,)."""
    rows = [json.loads(line) for line in mel_path.with_suffix(".jsonl").read_text().splitlines()]
    mel = np.memmap(mel_path, dtype=np.float16, mode="r").reshape(-1, N_MELS)
    found: dict[int, Floats] = {}
    order = sorted(range(len(rows)), key=lambda index: int(rows[index]["frames"]))
    while order:
        longest = rows[order[-1]]["frames"] + TAIL
        n_frames = (longest + 1) // 2 * 2
        some, order = order[-max(1, BATCH_FRAMES // n_frames) :], order[: -max(1, BATCH_FRAMES // n_frames)]
        spans = [slice(rows[index]["start"], rows[index]["start"] + rows[index]["frames"]) for index in some]
        mels = [np.asarray(mel[span], dtype=np.float32) for span in spans]
        for index, heard in zip(some, states(encoder, mels, n_frames), strict=True):
            found[index] = (heard - mean[: len(heard)]) / deviation
    write_states(mel_path, [found[index] for index in range(len(rows))])


@functools.cache
def _own_encoder(folder: Path, device: str) -> Encoder:
    """A process's encoder; one thread each, since lock-step threads starve on a busy machine."""
    torch.set_num_threads(1)
    encoder = load_encoder(folder)
    encoder.to(device)
    return encoder


def teach_one(folder: Path, device: str, mel_path: Path) -> str:
    """`teach_shard` as a job of a process pool."""
    statistics = np.load(mel_path.parent / "states.npz")
    teach_shard(_own_encoder(folder, device), mel_path, statistics["mean"], statistics["deviation"])
    return mel_path.stem


def write_states(mel_path: Path, parts: list[Floats]) -> None:
    """Write `.states`, whole or not at all."""
    temporary = mel_path.with_suffix(".states.tmp")
    temporary.write_bytes(np.concatenate(parts).astype(np.float16).tobytes())
    temporary.rename(mel_path.with_suffix(".states"))


def position_means(heard: list[Floats], least: int = 40) -> Floats:
    """States of many whole windows, (n, 384) each → (positions, 384) means where at least `least` of them reach."""
    length = sorted((len(part) for part in heard), reverse=True)[least - 1]
    sums = np.zeros((length, heard[0].shape[1]), dtype=np.float64)
    counts = np.zeros((length, 1))
    for part in heard:
        sums[: len(part)] += part[:length]
        counts[: len(part)] += 1
    return np.asarray(sums / counts, dtype=np.float32)


def ingest_human(encoder: Encoder, clips: Path, out: Path) -> None:
    """Human clips of up to 30 s → `human.mel`, `.jsonl` and `.states`, a row a clip; and `states.npz`."""
    rows: list[str] = []
    mels, parts, total = [], [], 0
    named = []
    for path in sorted(clips.glob("*.flac")):
        audio, rate = soundfile.read(path, dtype="float32")
        if rate == SAMPLE_RATE and len(audio) // 160 <= WINDOW:
            named.append((path.stem, log10_mel(audio)))
    heard = [states(encoder, [mel], (len(mel) + TAIL) // 2 * 2)[0] for _, mel in named]
    mean = position_means(heard)
    centred = [part[: len(mean)] - mean[: len(part)] for part in heard]
    deviation = np.concatenate(centred).std(axis=0)
    np.savez(out / "states.npz", mean=mean, deviation=deviation)
    for (name, mel), part in zip(named, centred, strict=True):
        row = {"text": None, "voice": f"human:{name}", "passage": name, "start": total, "frames": 2 * len(part)}
        rows.append(json.dumps(row))
        mels.append(mel[: 2 * len(part)].astype(np.float16))
        parts.append(part / deviation)
        total += 2 * len(part)
    (out / "human.jsonl").write_text("\n".join(rows) + "\n")
    (out / "human.mel").write_bytes(np.concatenate(mels).tobytes())
    write_states(out / "human.mel", parts)


def principal(states_paths: list[Path], n_state: int) -> Floats:
    """(384, n_state): projects states onto their principal components, each scaled by the root of its deviation.

    Half-way between leaving the components as they are (a few would drown the rest) and making them equal (noise would
    count like speech); the result varies by 1 on average.
    """
    parts = [np.fromfile(path, dtype=np.float16).reshape(-1, 384)[::3] for path in states_paths]
    sample = np.concatenate(parts).astype(np.float32)
    values, vectors = np.linalg.eigh(sample.T @ sample / len(sample))
    order = np.argsort(values)[::-1][:n_state]
    scaled = vectors[:, order] * values[order] ** -0.25
    return np.asarray(scaled / np.sqrt(np.mean(values[order] ** 0.5)), dtype=np.float32)


def main() -> None:
    """`python -m tools.train.teacher --model FOLDER --data FOLDER --clips FOLDER`"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder of the teacher: Whisper tiny.en")
    parser.add_argument("--data", type=Path, required=True, help="the shards' folder; a shard that has states is kept")
    parser.add_argument("--clips", type=Path, required=True, help="folder of unlabelled human .flac clips, 16 kHz")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--n-state", type=int, default=256, help="the student's width")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not (options.data / "human.states").exists():
        ingest_human(_own_encoder(options.model, options.device), options.clips, options.data)
    missing = [path for path in sorted(options.data.glob("shard-*.mel")) if not path.with_suffix(".states").exists()]
    # Spawned, as a forked process cannot use the GPU that its parent has opened.
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        for name in pool.map(functools.partial(teach_one, options.model, options.device), missing):
            logging.info("%s", name)
    bridge = options.data / "bridge.npy"
    if not bridge.exists():
        np.save(bridge, principal([options.data / "human.states", options.data / "shard-000.states"], options.n_state))


if __name__ == "__main__":
    main()
