"""The real tiny.en as other tools store it says, token for token, what its Hugging Face folder says."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernels.checkpoints.load import load_checkpoint
from kernels.checkpoints.vocabulary import BYTE_OF
from service.audio.decode import decode
from service.settings import Settings
from service.transcription.transcriber import Options
from tests.support.checkpoint_files import write_ctranslate2, write_ggml
from tests.support.serving import engine_for

CLIPS = ("jfk.wav", "librispeech/1688-142285-0003.flac", "librivox/0930.wav")


@pytest.fixture(scope="module")
def models(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The model in f16 in three formats, of which two have a vocabulary in place of a tokenizer.json."""
    checkpoint = load_checkpoint(shared / "models/tiny_en")
    vocab = json.loads(checkpoint.tokenizer_json)["model"]["vocab"]
    names = sorted((name for name in vocab if name != "<|endoftext|>"), key=lambda name: vocab[name])
    folder = tmp_path_factory.mktemp("formats")
    (folder / "ctranslate2").mkdir()
    arrays = dict(checkpoint.arrays)
    with pytest.MonkeyPatch.context() as patch:
        tokens = [bytes(BYTE_OF[character] for character in name) for name in names]
        patch.setattr("tests.support.checkpoint_files.TOKENS", tokens)
        ggml = write_ggml(folder, arrays, dims=checkpoint.dims)
    ctranslate2 = write_ctranslate2(folder / "ctranslate2", arrays, dims=checkpoint.dims).parent
    (ctranslate2 / "tokenizer.json").unlink()
    specials = [f"<|special {index}|>".replace(" ", "-") for index in range(checkpoint.dims.n_vocab - len(names))]
    (ctranslate2 / "vocabulary.json").write_text(json.dumps([*names, *specials]))
    (ctranslate2 / "config.json").write_text(json.dumps({"alignment_heads": checkpoint.alignment_heads}))
    yield {"huggingface": shared / "models/tiny_en", "ctranslate2": ctranslate2, "ggml": ggml}


def test_the_same_tokens_and_times(models: dict[str, Path], shared: Path) -> None:
    heard = {}
    for name, path in models.items():
        with engine_for(Settings(model=str(path), target="cpu")) as engine:
            transcriber = engine.load()
            results = []
            for clip in CLIPS:
                with (shared / "speech" / clip).open("rb") as file:
                    results.append(transcriber.transcribe(decode(file), Options(word_timestamps=True)))
            heard[name] = results
    assert "fellow Americans" in heard["huggingface"][0].text
    assert heard["ctranslate2"] == heard["huggingface"]
    assert heard["ggml"] == heard["huggingface"]
