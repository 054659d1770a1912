"""The benchmark's own arithmetic and page."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench.engines import openai_name, read_clip
from bench.report import median_ratio, write_report

RESULTS = {
    "machine": "2 cores",
    "model": "tiny_en",
    "clip": "jfk.wav",
    "rounds": 3,
    "seconds": {"encode": {"wisp cpu": [1.0, 4.0, 2.0], "openai-whisper": [2.0, 4.0, 8.0]}},
    "texts": {},
    "missing": {"wisp gpu": "no adapter"},
    "start": {"seconds": 1.5, "peak_mb": 400.0},
    "instance_seconds": 0.00005,
    "guest_share": 0.031,
}


def test_a_ratio_is_taken_round_by_round() -> None:
    assert median_ratio([1.0, 4.0, 2.0], [2.0, 4.0, 8.0]) == 0.5


def test_the_page_keeps_its_words_and_gets_new_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "performance.md"
    page.write_text("# Performance\n\nBefore.\n\n<!-- measured: begin -->\nold\n<!-- measured: end -->\n\nAfter.\n")
    write_report(RESULTS, page)
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("# Performance\n\nBefore.") and text.endswith("After.\n")
    assert "| encode | wisp cpu | 2000.0 | 1000.0 | 0.50 |" in text
    assert "CPU target: 3.1 %." in text
    assert "Skipped: wisp gpu: no adapter." in text
    assert json.loads((tmp_path / "performance.json").read_text()) == RESULTS
    assert "| encode | wisp cpu |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("model.encoder.layers.0.self_attn.q_proj.weight", "encoder.blocks.0.attn.query.weight"),
        ("model.decoder.layers.3.encoder_attn_layer_norm.bias", "decoder.blocks.3.cross_attn_ln.bias"),
        ("model.decoder.layers.1.fc2.bias", "decoder.blocks.1.mlp.2.bias"),
        ("model.decoder.layer_norm.weight", "decoder.ln.weight"),
        ("model.encoder.layer_norm.weight", "encoder.ln_post.weight"),
        ("model.decoder.embed_tokens.weight", "decoder.token_embedding.weight"),
    ],
)
def test_hugging_face_names_become_openai_names(theirs: str, ours: str) -> None:
    assert openai_name(theirs) == ours


def test_the_clip_must_be_what_every_engine_can_read(tmp_path: Path) -> None:
    import soundfile

    good, bad = tmp_path / "good.wav", tmp_path / "bad.wav"
    soundfile.write(good, np.full(160, 0.5), 16000, subtype="PCM_16")
    soundfile.write(bad, np.full(160, 0.5), 8000, subtype="PCM_16")
    np.testing.assert_allclose(read_clip(good), 0.5, atol=1e-4)
    with pytest.raises(ValueError, match="16 kHz mono"):
        read_clip(bad)
