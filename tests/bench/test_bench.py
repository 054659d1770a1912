"""The benchmark's own arithmetic and page."""

import json
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bench.clips import build_clips
from bench.cold import measure_starts, start_process
from bench.convert import write_ggml
from bench.engines import ENGINES, Files, Unsupported, in_threads, read_clip
from bench.plot import write_plot
from bench.report import median_ratio, write_report
from kernels.checkpoints.ggml import read_ggml
from tests.support.checkpoint_files import DIMS, TOKENS, arrays_of, write_huggingface

RESULTS = {
    "machine": "2 cores",
    "model": "tiny_en",
    "clip": "11 s",
    "rounds": 3,
    "seconds": {
        "encode": {"wisp": [1.0, 4.0, 2.0], "openai-whisper": [2.0, 4.0, 8.0]},
        "token": {"wisp": [0.001, 0.001, 0.001]},
        "11 s": {"wisp": [1.0, 1.0, 1.0], "openai-whisper": [4.0, 4.0, 4.0]},
        "2 s": {"wisp": [4.0], "wisp gpu": [1.0], "openai-whisper CUDA f16": [2.0]},
    },
    "together": {"4 at once": {"wisp": [2.0]}},
    "texts": {},
    "missing": {"whisper.cpp": "not installed"},
    "start": {
        "wisp": {"seconds": 0.5, "best": 0.4, "peak_mb": 200.0},
        "openai-whisper": {"seconds": 5.0, "best": 4.0, "peak_mb": 900.0},
    },
    "instances": {"count": 20000, "per_second": 15000.0, "median_seconds": 0.00005},
    "guest_share": 0.031,
    "kernels": {
        "adapter": "a software one",
        "gflop_per_s": 100.0,
        "gb_per_s": 6.0,
        "encode": {"gemm": {"launches": 2, "us": 1500.0, "mb": 3.25, "gflop": 0.5, "of_limit": 0.4}},
        "token": {"choose": {"launches": 1, "us": 80.0, "mb": 0.5, "gflop": 0.0, "of_limit": 1.0}},
    },
}


def test_cold_starts_keep_bytecode_as_installations_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    program = "import sys; print('words' if not sys.dont_write_bytecode else '', end='')"
    start = measure_starts({"python": partial(start_process, [sys.executable, "-c", program], os.environ)}, rounds=1)[
        "python"
    ]
    assert start["seconds"] > 0 and start["peak_mb"] > 0


def test_a_ratio_is_taken_round_by_round() -> None:
    assert median_ratio([1.0, 4.0, 2.0], [2.0, 4.0, 8.0]) == 0.5


def test_the_page_keeps_its_words_and_gets_new_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "performance.md"
    page.write_text("# Performance\n\nBefore.\n\n<!-- measured: begin -->\nold\n<!-- measured: end -->\n\nAfter.\n")
    write_report(RESULTS, page)
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("# Performance\n\nBefore.") and text.endswith("After.\n")
    assert "| openai-whisper | 4000.0 (0.50) | – |" in text
    assert "| openai-whisper | 4000 (0.25) | – |" in text
    assert "| wisp gpu | – | 1000 (4.00) |" in text
    assert "| openai-whisper CUDA f16 | – | 2000 (0.50) |" in text  # on a GPU, as Wisp there
    assert "| wisp | 2000 |" in text
    assert "| openai-whisper | 5.00 (0.10) | 4.00 | 900 |" in text
    assert "| encode: `gemm` | 2 | 1500 | 3.2 | 0.5 | 0.40 |" in text
    assert "| token: `choose` | 1 | 80 | 0.5 | – | 1.00 |" in text
    assert "20000 in a row on one core: 15000 a second." in text
    assert "CPU target: 3.1 %." in text
    assert "Skipped: whisper.cpp: not installed." in text
    assert json.loads((tmp_path / "performance.json").read_text()) == RESULTS
    assert "| wisp | 2000.0 | 1.0 |" in capsys.readouterr().out


def test_the_clip_must_be_what_every_engine_can_read(tmp_path: Path) -> None:
    import soundfile

    good, bad = tmp_path / "good.wav", tmp_path / "bad.wav"
    soundfile.write(good, np.full(160, 0.5), 16000, subtype="PCM_16")
    soundfile.write(bad, np.full(160, 0.5), 8000, subtype="PCM_16")
    np.testing.assert_allclose(read_clip(good), 0.5, atol=1e-4)
    with pytest.raises(ValueError, match="16 kHz mono"):
        read_clip(bad)


def test_the_plot_shows_every_engine(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs the extra [bench]")
    assert write_plot(RESULTS, tmp_path / "performance.svg")
    text = (tmp_path / "performance.svg").read_text()
    assert "openai-whisper" in text and "11 s of speech" in text


def test_clips_without_their_sources_are_left_out(tmp_path: Path) -> None:
    import soundfile

    assert build_clips(tmp_path / "none", tmp_path / "build") == {}
    speech = tmp_path / "speech"
    (speech / "librispeech").mkdir(parents=True)
    soundfile.write(speech / "librispeech" / "a.flac", np.full(50_000, 0.5), 16000)
    clips = build_clips(speech, tmp_path / "build")
    assert {name: len(read_clip(path)) for name, path in clips.items()} == {"30 s": 480_000, "5 min": 4_800_000}


def test_an_engine_without_its_files_is_left_out(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match="could not be converted to ctranslate2"):
        Files(tmp_path, tmp_path).need("ctranslate2")
    assert ENGINES["wisp"].is_peer is False
    assert {entry.module for entry in ENGINES.values() if entry.is_peer} == {"bench.peers"}


def test_calls_at_once_raise_what_one_raised() -> None:
    def refuse() -> None:
        raise Unsupported("one at a time")

    with pytest.raises(Unsupported, match="one at a time"):
        in_threads(refuse, 3)


def test_the_ggml_file_holds_the_same_model(tmp_path: Path) -> None:
    arrays = arrays_of()
    folder = write_huggingface(tmp_path, arrays)
    vocabulary = {f"Ġ{rank}": rank for rank in range(len(TOKENS))} | {"<|endoftext|>": len(TOKENS)}
    tokenizer = {"added_tokens": [{"id": len(TOKENS)}], "model": {"vocab": vocabulary}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with (tmp_path / "ggml-model.bin").open("wb") as file:
        write_ggml(folder, file)
    stored = read_ggml(tmp_path / "ggml-model.bin")
    assert stored.dims == DIMS
    for name, array in arrays.items():
        found = stored.arrays[name]
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found.reshape(array.shape), array)
