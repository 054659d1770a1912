"""Live speech with OpenAI's tiny.en: people's recordings, heard in real-time order."""

from pathlib import Path

import numpy as np
import pytest

from service.transcription.reading import audio_of
from service.transcription.transcriber import Options
from tests.support import synthetic
from tests.support.serving import engine_for, ready, settings_for, tone
from tools.wer import read_manifest, score, transcribe, transcribe_live

N_CLIPS = 8


def test_live_words_are_those_of_the_file_and_never_taken_back(tiny_en: Path, shared: Path) -> None:
    """All 50 clips differ by 0.3 points (docs/performance.md)."""
    clips = read_manifest(shared / "speech" / "librispeech" / "transcripts.tsv")
    clips = sorted(clips, key=lambda clip: clip.audio.stat().st_size)[-N_CLIPS:]
    flags, said = {"model": str(tiny_en), "target": "cpu"}, [clip.said for clip in clips]
    as_files = score(said, transcribe(clips, flags))
    live = score(said, transcribe_live(clips, flags))  # raises if a word is taken back
    assert live.wer < as_files.wer + 0.05


@pytest.mark.parametrize("vad", ["skip", "cut", "off"])
def test_a_pass_is_one_window_whatever_is_done_about_silence(tmp_path: Path, vad: str) -> None:
    folder = synthetic.save_synthetic(tmp_path / "both", multilingual=True)
    with engine_for(settings_for(folder, vad=vad)) as engine:
        transcriber = ready(engine).transcriber
        assert transcriber is not None
        samples = np.concatenate((np.zeros(16_000, np.float32), tone(4.0)))
        (first,) = transcriber.transcribe(audio_of(samples), Options(settled=())).segments
        assert first.text.strip() == synthetic.SENTENCE
        (second,) = transcriber.transcribe(audio_of(samples), Options(settled=first.tokens[:2])).segments
        assert second.tokens == first.tokens
