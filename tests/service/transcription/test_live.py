"""Live speech with OpenAI's tiny.en: people's recordings, heard in real-time order."""

from pathlib import Path

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
