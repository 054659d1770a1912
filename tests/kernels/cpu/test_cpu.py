"""The CPU target as a whole: threads, closing, the encoder, and openai/whisper's own values."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.checkpoints.load import load_checkpoint
from kernels.cpu.model import CpuModel
from service.audio.decode import decode
from service.audio.log_mel import log_mel_spectrogram
from tests.conftest import ROOT
from tests.support.small_whisper import AUDIO, CHECKPOINT, DIMS, append, ints, rules


@pytest.fixture(scope="module")
def model() -> CpuModel:
    return CpuModel(CHECKPOINT)


@pytest.fixture
def mel() -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((1, DIMS.n_mels, 2 * DIMS.n_audio_ctx), dtype=np.float32)


def test_contexts_work_in_threads_at_once(model: CpuModel, mel: Any) -> None:
    def work(seed: int) -> list[Any]:
        encoder = model.encoder.init_execution_context({})
        encoder.set_input(0, mel * seed)
        encoder.compute()
        decoder = model.decoder.init_execution_context({7: encoder})
        decoder.set_input(0, AUDIO)
        decoder.set_input(3, rules(20))
        append(decoder, [[9]])
        return [encoder.get_output(0), decoder.get_output(1), decoder.get_output(2)]

    expected = [work(seed) for seed in range(4)]
    found: list[list[Any]] = [[] for _ in range(4)]
    threads = [threading.Thread(target=lambda seed=seed: found[seed].extend(work(seed))) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(expected, found, strict=True):
        for left, right in zip(one, other, strict=True):
            np.testing.assert_array_equal(left, right)


def test_encoder_refuses_invalid_windows(model: CpuModel, mel: Any) -> None:
    context = model.encoder.init_execution_context({})
    with pytest.raises(ValueError, match="not set"):
        context.compute()
    with pytest.raises(ValueError, match="nothing is computed"):
        context.get_output(0)
    for index, tensor, message in (
        (1, mel, "no input 1"),
        (0, mel[:, :, :-1], "mel must be"),
        (0, mel[0], "mel must be"),
        (0, mel.astype(np.float64), "mel must be"),
        (0, np.where(mel > 2, np.nan, mel), "not finite"),
        (0, np.where(mel > 2, np.float32(np.inf), mel), "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            context.set_input(index, tensor)
    context.set_input(0, mel)
    context.compute()
    with pytest.raises(ValueError, match="no output 1"):
        context.get_output(1)
    context.close()
    context.close()
    for use in (context.compute, lambda: context.get_output(0)):
        with pytest.raises(ValueError, match=r"closed|computed"):
            use()


def test_closed_contexts_and_models_refuse(model: CpuModel, mel: Any) -> None:
    encoder = model.encoder.init_execution_context({})
    encoder.set_input(0, mel)
    encoder.compute()
    decoder = model.decoder.init_execution_context({7: encoder})
    decoder.set_input(0, AUDIO)
    append(decoder, [[9]])
    decoder.close()
    decoder.close()
    with pytest.raises(ValueError, match="nothing is computed"):
        decoder.get_output(0)
    with pytest.raises(ValueError, match="closed"):
        decoder.compute()
    encoder.close()
    for context, index in ((encoder, 0), (decoder, 0), (decoder, 1), (decoder, 3)):
        with pytest.raises(ValueError, match="context is closed"):
            context.set_input(index, mel)
    closed = CpuModel(CHECKPOINT)
    closed.close()
    closed.close()
    with pytest.raises(ValueError, match="model is closed"):
        closed.encoder.init_execution_context({})
    with pytest.raises(ValueError, match="model is closed"):
        closed.decoder.init_execution_context({})


@pytest.fixture(scope="module")
def tiny_en(shared: Path) -> CpuModel:
    return CpuModel(load_checkpoint(shared / "models/tiny_en"))


@pytest.mark.parametrize("clip", ["jfk", "librispeech"])
def test_audio_states_are_openai_whispers(tiny_en: CpuModel, shared: Path, clip: str) -> None:
    values = np.load(shared / f"expected/features-{clip}.npz")
    context = tiny_en.encoder.init_execution_context({})
    context.set_input(0, values["log_mel"][None])
    context.compute()
    difference = np.abs(context.get_output(0)[0] - values["audio_states"]).max()
    assert difference / np.abs(values["audio_states"]).max() < 2e-5


def test_greedy_tokens_are_openai_whispers(tiny_en: CpuModel, shared: Path) -> None:
    """A few clips; every clip is compared through the whole service elsewhere."""
    suppress = json.loads((shared / "models/tiny_en/generation_config.json").read_text())["suppress_tokens"]
    expected: dict[str, list[Any]] = {}
    for kind in ("timestamps", "no-timestamps"):
        for line in (shared / f"expected/decode-{kind}.jsonl").read_text().splitlines()[::14]:
            expected.setdefault(json.loads(line)["file"], []).append((kind == "timestamps", json.loads(line)))
    for name, cases in expected.items():
        with (shared / "speech" / name).open("rb") as file:
            samples = np.concatenate(list(decode(file).blocks()))[:480_000]
        mel = log_mel_spectrogram(np.pad(samples, (0, 480_000 - len(samples))), 80)
        encoder = tiny_en.encoder.init_execution_context({})
        encoder.set_input(0, mel[None])
        encoder.compute()
        decoder = tiny_en.decoder.init_execution_context({7: encoder})
        for timestamps, values in cases:
            prompt = [50257] if timestamps else [50257, 50362]
            fixed = (224, len(prompt), 50256, 50363 if timestamps else -1, 50362, 50, len(suppress), 2)
            decoder.set_input(0, AUDIO)
            decoder.set_input(3, ints(*fixed, *suppress, 220, 50256))
            append(decoder, [prompt])
            tokens, scores = decoder.get_output(1)[0].tolist(), decoder.get_output(2)[0]
            assert [token for token in tokens if token != 50256] == values["tokens"], name
            assert scores.sum() / (len(values["tokens"]) + 1) == pytest.approx(values["avg_logprob"], abs=1e-3)


def test_the_cpu_target_loads_nothing_of_webgpu() -> None:
    program = "import sys, kernels.cpu.model\nprint(sorted({'jinja2', 'wgpu'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
