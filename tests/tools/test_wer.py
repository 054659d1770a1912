"""Scoring a model on a manifest, through the product (`tools/wer.py`)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tools.wer import Clip, read_manifest, score

EMBEDDED = ROOT / "assets" / "embedded"


def test_word_error_rate_ignores_case_marks_and_spelling() -> None:
    assert score(["Mr. Hill's favourite colour!"], ["mister hill's favorite color"]).wer == 0


def test_word_errors_are_counted_by_their_kind_over_all_clips() -> None:
    found = score(["we saw the red house", "now"], ["we saw a red", "right now"])
    assert (found.substitutions, found.deletions, found.insertions) == (1, 1, 1)
    assert found.wer == pytest.approx(3 / 6)


def test_a_clip_with_nothing_said_does_not_count() -> None:
    assert score(["[music]", "yes"], ["anything at all", "yes"]).clips == 1


def test_the_three_kinds_of_manifest_are_read(tmp_path: Path) -> None:
    for name in ("1-2-0003.flac", "0004.wav", "0005.wav"):
        (tmp_path / name).touch()
    (tmp_path / "transcripts.tsv").write_text("1-2-0003\tso it was\n")
    (tmp_path / "transcription").write_text("<s> and so </s> (book-0004)\n")
    (tmp_path / "manifest.jsonl").write_text('{"audio": "0005.wav", "text": "Yes."}\n')
    assert read_manifest(tmp_path / "transcripts.tsv") == [Clip(tmp_path / "1-2-0003.flac", "so it was")]
    assert read_manifest(tmp_path / "transcription") == [Clip(tmp_path / "0004.wav", "and so")]
    assert read_manifest(tmp_path / "manifest.jsonl") == [Clip(tmp_path / "0005.wav", "Yes.")]


def test_a_line_without_its_sound_is_named(tmp_path: Path) -> None:
    (tmp_path / "transcripts.tsv").write_text("1-2-0003\tso it was\n")
    with pytest.raises(ValueError, match="no sound or no words for the line '1-2-0003"):
        read_manifest(tmp_path / "transcripts.tsv")


def test_the_embedded_model_is_scored_on_human_speech(shared: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    manifest = shared / "speech/librispeech/transcripts.tsv"
    command = [sys.executable, "-m", "tools.wer", "--model", str(EMBEDDED), "--manifest", str(manifest)]
    command += ["--limit", "2", "--texts", str(texts)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    row = json.loads(done.stdout)
    assert row["clips"] == 2
    heard = [json.loads(line) for line in texts.read_text().splitlines()]
    again = score([each["said"] for each in heard], [each["heard"] for each in heard])
    assert row["wer"] == round(100 * again.wer, 1)
