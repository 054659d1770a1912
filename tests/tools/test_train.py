"""The embedded model's recipe (`tools/train`) and the folder it left in `assets/embedded`."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from kernels.checkpoints.load import load_checkpoint
from service.audio.log_mel import log_mel_spectrogram
from tests.support.plain_whisper import PlainWhisper
from tests.support.training import maker, small_run, small_tokenizer, utterances
from tools.train import text
from tools.train.features import log10_mel, whisper_scale
from tools.train.tokenizer import SPECIAL, special_ids, suppressed, timestamp_name

EMBEDDED = Path(__file__).parents[2] / "assets" / "embedded"
MAX_BYTES = 24_000_000


def check_layout(tokenizer: Tokenizer, n_audio_ctx: int) -> None:
    """The special tokens follow the pieces in Whisper's order, then the timestamps from 0 to the window's end."""
    ids = special_ids(tokenizer)
    assert [tokenizer.id_to_token(ids["endoftext"] + n) for n in range(len(SPECIAL))] == SPECIAL
    assert ids["timestamp_begin"] == ids["notimestamps"] + 1
    assert tokenizer.get_vocab_size() == ids["timestamp_begin"] + n_audio_ctx + 1
    assert tokenizer.id_to_token(tokenizer.get_vocab_size() - 1) == timestamp_name(n_audio_ctx)
    assert ids["notimestamps"] not in suppressed(tokenizer)
    assert ids["startoftranscript"] in suppressed(tokenizer)


def test_special_tokens_follow_the_pieces() -> None:
    check_layout(small_tokenizer(), n_audio_ctx=50)


def test_tokenizer_gives_back_any_text() -> None:
    tokenizer = small_tokenizer()
    for line in (" Ça va? 100 % œuvre", " The train"):
        assert tokenizer.decode(tokenizer.encode(line).ids) == line


def test_numbers_are_spelled_as_spoken() -> None:
    numbers = (0, 19, 42, 100, 311, 20_006)
    assert [text.spell(number) for number in numbers] == [
        "zero",
        "nineteen",
        "forty-two",
        "one hundred",
        "three hundred and eleven",
        "twenty thousand six",
    ]


def test_pieces_are_the_whole_sentence_and_short_enough() -> None:
    sentence = "When the rain had stopped, " + "and the old man was gone, " * 9 + "we left."
    parts = text.pieces(sentence, random.Random(3))
    assert " ".join(parts) == sentence
    assert max(len(part.split()) for part in parts) <= text.MAX_WORDS


def test_sentences_lose_headings_digits_and_quotes() -> None:
    raw = 'CHAPTER ONE\n\n"It was late," said Mr. Hill; nobody\ncame. In 1815 they met.\n\nWas it -- true?\n'
    assert text.sentences(raw) == ["It was late, said Mr. Hill, nobody came.", "Was it, true?"]


def test_held_out_text_is_the_same_in_any_case() -> None:
    lines = [f"{text.spell(number)} men" for number in range(2000)]
    held_out = [line for line in lines if text.is_held_out(line)]
    assert 20 < len(held_out) < 90
    assert all(text.is_held_out(line.upper()) for line in held_out)


def test_features_are_the_service_s() -> None:
    audio = np.random.default_rng(0).normal(size=16_000).astype(np.float32) * np.float32(0.1)
    np.testing.assert_allclose(whisper_scale(log10_mel(audio)), log_mel_spectrogram(audio, 80).T, atol=1e-4)


def test_timestamps_are_where_the_utterances_are() -> None:
    spoken = utterances()
    make = maker()
    begin = make.ids["timestamp_begin"]
    seen = 0
    for _ in range(40):
        placed = make.place(spoken, 4, True)
        example = make.example(placed, True, [])
        stamps = [2 * (token - begin) for token in example.tokens if token >= begin]
        if not stamps:
            continue
        seen += 1
        expected = []
        for part in placed:
            whole = part.frames == part.utterance.frames
            if part.text():
                expected += [part.start, part.start + part.frames] if whole else [part.start]
        assert stamps == expected
        for (_, _, first, last), part in zip(example.spans, placed, strict=False):
            assert (first, last) == (part.start, part.start + part.frames)
        assert example.mel.shape == (100, 80)
    assert seen > 5


def test_an_utterance_the_window_cuts_has_a_start_and_no_end() -> None:
    spoken = utterances(frames=80)
    make = maker()
    begin = make.ids["timestamp_begin"]
    for _ in range(20):
        placed = make.place(spoken, 40, True)
        assert [part.frames for part in placed] == [60]
        tokens = make.example(placed, True, []).tokens
        stamps = [token - begin for token in tokens if token >= begin]
        assert stamps in ([20], [])
        assert tokens[-1] == make.ids["endoftext"]


def test_silence_predicts_no_speech_and_empty_text() -> None:
    spoken = utterances()
    from tools.train.batches import collate

    make = maker()
    for _ in range(20):
        example = make.silence(100, [])
        batch = collate([example], make.ids)
        assert batch.targets[0, 0] == make.ids["nospeech"]
        said = [token for token in example.tokens[example.n_prompt :] if token < make.ids["endoftext"]]
        assert make.tokenizer.decode(said).strip() == ""
    assert spoken


def test_two_runs_are_averaged() -> None:
    torch = pytest.importorskip("torch", reason="training needs torch")
    from tools.train.export import mixed

    ours, theirs = {"a": torch.tensor([0.0, 1.0])}, {"a": torch.tensor([1.0, 1.0])}
    torch.testing.assert_close(mixed(ours, theirs, 0.25)["a"], torch.tensor([0.25, 1.0]))


def test_exported_weights_compute_what_was_trained(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="training needs torch")
    from tools.train.export import export, load

    run = small_run()
    small_tokenizer().save(str(tmp_path / "tokenizer.json"))
    export(run.average, run.student.model.dims, tmp_path / "tokenizer.json", tmp_path)
    mel = torch.randn(1, 80, 100)
    tokens = [3, 9, 27]
    with torch.no_grad():
        states = run.student.model.encoder(mel)
        logits = run.student.model.decoder(torch.tensor([tokens]), states)[0].numpy()
        model, _ = load(tmp_path)
        again = model.decoder(torch.tensor([tokens]), model.encoder(mel))[0].numpy()
    np.testing.assert_allclose(again, logits, atol=2e-2)
    plain = PlainWhisper(load_checkpoint(tmp_path))
    expected, _ = plain.decode(tokens, plain.encode(mel[0].numpy()))
    np.testing.assert_allclose(again, expected, atol=1e-3)


def test_timestamps_are_made_less_likely_and_nothing_else(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="training needs torch")
    from tools.train.export import export, load

    run = small_run()
    small_tokenizer().save(str(tmp_path / "tokenizer.json"))
    # As in a trained model, the timestamps' rows are alike: a direction of their own.
    ids = special_ids(small_tokenizer())
    table = run.average["model.decoder.embed_tokens.weight"]
    table[ids["timestamp_begin"] :, 0] += 1.0
    logits = []
    for nats in (0.0, 1.0):
        export(run.average, run.student.model.dims, tmp_path / "tokenizer.json", tmp_path, nats)
        model, _ = load(tmp_path)
        with torch.no_grad():
            logits.append(model.decoder(torch.tensor([[3, 9]]), model.encoder(torch.zeros(1, 80, 100)))[0, -1].numpy())
    change = logits[1] - logits[0]
    np.testing.assert_allclose(change[ids["timestamp_begin"] :], -1.0, atol=0.2)
    np.testing.assert_allclose(change[: ids["endoftext"] + 1], 0.0, atol=0.2)


def test_a_resumed_run_takes_the_same_step(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="training needs torch")
    from tools.train.batches import collate

    spoken = utterances()
    make = maker()
    make.tokenizer = small_tokenizer()
    batch = collate([make.example(make.place(spoken[:2], 0, False), True, []) for _ in range(2)], make.ids)
    run, resumed = small_run(), small_run(seed=5)
    run.step(batch, 0.1)
    run.save(tmp_path / "state.pt")
    resumed.load(tmp_path / "state.pt")
    for each in (run, resumed):
        each.step(batch, 0.1)
    assert (resumed.steps, resumed.heard) == (run.steps, run.heard) == (2, 2 * batch.seconds)
    for name, value in run.average.items():
        torch.testing.assert_close(resumed.average[name], value, atol=1e-5, rtol=1e-4)


def test_the_committed_model_is_small_and_laid_out_as_whisper_s() -> None:
    assert sum(path.stat().st_size for path in EMBEDDED.iterdir()) <= MAX_BYTES
    config = json.loads((EMBEDDED / "config.json").read_text())
    generation = json.loads((EMBEDDED / "generation_config.json").read_text())
    tokenizer = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    check_layout(tokenizer, config["max_source_positions"])
    ids = special_ids(tokenizer)
    assert config["vocab_size"] == tokenizer.get_vocab_size()
    assert config["d_model"] == 64 * config["encoder_attention_heads"] == 64 * config["decoder_attention_heads"]
    assert generation["no_timestamps_token_id"] == ids["notimestamps"]
    assert generation["decoder_start_token_id"] == ids["startoftranscript"]
    assert generation["suppress_tokens"] == suppressed(tokenizer)
    assert generation["begin_suppress_tokens"] == [tokenizer.encode(" ").ids[0], ids["endoftext"]]
    assert generation["is_multilingual"] is False
    for layer, head in generation["alignment_heads"]:
        assert layer < config["decoder_layers"]
        assert head < config["decoder_attention_heads"]


def test_the_committed_model_loads_with_its_own_dims() -> None:
    config = json.loads((EMBEDDED / "config.json").read_text())
    dims = load_checkpoint(EMBEDDED).dims
    assert dims.n_audio_ctx == config["max_source_positions"]
    assert dims.n_vocab == config["vocab_size"]
