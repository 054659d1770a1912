"""The tokenizer: openai/whisper's ids, text and suppress list, from a tokenizer.json."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.errors import ModelError
from service.models.places import EMBEDDED
from service.models.tokenizer import _MUSIC, _SYMBOLS, Tokenizer
from tests.conftest import ROOT
from tests.support.synthetic import save_synthetic

N_VOCAB = 51_864
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def tiny_en(shared: Path) -> Tokenizer:
    return Tokenizer((shared / "models/tiny_en/tokenizer.json").read_text(), N_VOCAB, is_multilingual=False)


@pytest.fixture(scope="module")
def synthetic_json(tmp_path_factory: pytest.TempPathFactory) -> str:
    return (save_synthetic(tmp_path_factory.mktemp("model")) / "tokenizer.json").read_text()


def n_vocab(tokenizer_json: str) -> int:
    ids: list[int] = [token["id"] for token in json.loads(tokenizer_json)["added_tokens"]]
    return 1 + max(ids)


def byte_values() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte → the byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def test_suppress_list_is_whispers(tiny_en: Tokenizer, shared: Path) -> None:
    config = json.loads((shared / "models/tiny_en/generation_config.json").read_text())
    assert tiny_en.suppress == config["suppress_tokens"]
    assert [*tiny_en.blank, tiny_en.eot] == config["begin_suppress_tokens"]


def test_the_guest_is_told_every_constant(tiny_en: Tokenizer) -> None:
    tokens = tiny_en.guest_tokens()
    assert {name: value for name, value in tokens.items() if name != "suppress"} == {
        "sot": 50257,
        "eot": 50256,
        "transcribe": 50358,
        "translate": 50357,
        "sot_lm": 50359,
        "sot_prev": 50360,
        "no_speech": 50361,
        "no_timestamps": 50362,
        "timestamp_begin": 50363,
        "languages": {},
        "blank": [220],
    }
    json.dumps(tokens)


def test_text_of_whispers_own_tokens(tiny_en: Tokenizer, shared: Path) -> None:
    lines = [json.loads(line) for line in (shared / "expected/decode-timestamps.jsonl").read_text().splitlines()]
    assert lines
    for line in lines:
        assert tiny_en.decode(line["tokens"]).strip() == line["text"]


@pytest.mark.parametrize(
    "text",
    ["", " And so, my fellow Americans:", "日本語 🎉 café", "\n\n a  b ", "<|endoftext|> <|0.00|> <|en|>", "\u0000"],
)
def test_text_comes_back_whole(tiny_en: Tokenizer, text: str) -> None:
    ids = tiny_en.encode(text)
    assert tiny_en.decode(ids) == text
    assert all(token < tiny_en.eot for token in ids)


def test_broken_utf8_decodes_as_python_replaces_it(tiny_en: Tokenizer, shared: Path) -> None:
    vocabulary = json.loads((shared / "models/tiny_en/tokenizer.json").read_text())["model"]["vocab"]
    pieces, values = {token: piece for piece, token in vocabulary.items()}, byte_values()
    chance = random.Random(0)
    for _ in range(2000):  # the first 256 tokens are the single bytes
        ids = [chance.randrange(chance.choice([256, 50_256])) for _ in range(chance.randrange(1, 10))]
        data = bytes(values[character] for token in ids for character in pieces[token])
        assert tiny_en.decode(ids) == data.decode("utf-8", errors="replace")


def test_special_and_timestamp_tokens_say_nothing(tiny_en: Tokenizer) -> None:
    hello = tiny_en.encode(" hello")
    assert tiny_en.decode([50257, 50363, *hello, 51863, 50256]) == " hello"


@pytest.mark.parametrize("token", [-1, N_VOCAB])
def test_a_token_outside_the_vocabulary_is_refused(tiny_en: Tokenizer, token: int) -> None:
    with pytest.raises(ValueError, match=f"token {token} is outside the vocabulary of {N_VOCAB}"):
        tiny_en.decode([token])


def test_languages_belong_to_multilingual_models(synthetic_json: str) -> None:
    english = Tokenizer(synthetic_json, n_vocab(synthetic_json), is_multilingual=False)
    several = Tokenizer(synthetic_json, n_vocab(synthetic_json), is_multilingual=True)
    assert english.languages == {}
    assert list(several.languages) == ["de", "en"]
    assert several.languages["en"] == several.special["sot"] + 1


def test_older_vocabularies_say_nocaptions(synthetic_json: str) -> None:
    older = synthetic_json.replace("<|nospeech|>", "<|nocaptions|>")
    size = n_vocab(synthetic_json)
    assert Tokenizer(older, size, False).special == Tokenizer(synthetic_json, size, False).special


def test_timestamps_without_names_follow_notimestamps(synthetic_json: str) -> None:
    unnamed = json.loads(synthetic_json)
    unnamed["added_tokens"] = [token for token in unnamed["added_tokens"] if "." not in token["content"]]
    tokenizer = Tokenizer(json.dumps(unnamed), n_vocab(synthetic_json), False)
    assert tokenizer.timestamp_begin == tokenizer.special["no_timestamps"] + 1


@pytest.mark.parametrize("name", ["<|startoftranscript|>", "<|endoftext|>", "<|nospeech|>"])
def test_a_missing_special_token_is_named(synthetic_json: str, name: str) -> None:
    other = synthetic_json.replace(name, "<|other|>")
    with pytest.raises(ModelError, match=name.replace("|", r"\|")):
        Tokenizer(other, n_vocab(synthetic_json), False)


def test_a_tokenizer_of_another_model_is_refused(synthetic_json: str) -> None:
    with pytest.raises(ModelError, match="it is another model's"):
        Tokenizer(synthetic_json, 270, False)


def broken(change: Change, tokenizer_json: str) -> str:
    """The tokenizer.json after `change`."""
    file = json.loads(tokenizer_json)
    change(file)
    return json.dumps(file)


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.update(decoder={"type": "Metaspace"}),
        lambda file: file["model"].update(type="Unigram"),
        lambda file: file["model"]["vocab"].update(a="1"),
        lambda file: file["added_tokens"].append({"id": 1}),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused(synthetic_json: str, change: Change) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        Tokenizer(broken(change, synthetic_json), n_vocab(synthetic_json), False)


def test_merges_that_do_not_fit_are_told_by_the_first_prompt(synthetic_json: str) -> None:
    faulty = broken(lambda file: file["model"].update(merges=[["no", "such"]]), synthetic_json)
    tokenizer = Tokenizer(faulty, n_vocab(synthetic_json), False)
    assert tokenizer.decode([0]) == "!"
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        tokenizer.encode("a prompt")


@pytest.mark.parametrize("folder", ["models/tiny_en", ""])
def test_what_is_never_sampled_is_what_the_library_finds(shared: Path, folder: str) -> None:
    """The ids of each symbol, which are looked up without the library: in Whisper's vocabulary and the embedded one."""
    path = (shared / folder if folder else EMBEDDED) / "tokenizer.json"
    tokenizer = Tokenizer(path.read_text(), 51_864, is_multilingual=False)
    ids = {tokenizer.encode(" -")[0], tokenizer.encode(" '")[0]}
    for symbol in (*_SYMBOLS, *_MUSIC):
        for tokens in (tokenizer.encode(symbol), tokenizer.encode(" " + symbol)):
            ids |= {tokens[0]} if len(tokens) == 1 or symbol in _MUSIC else set()
    ids |= {id for name, id in tokenizer.special.items() if name not in ("eot", "no_timestamps")}
    assert tokenizer.suppress == sorted(ids)
    assert tokenizer.blank == tokenizer.encode(" ")


def test_the_library_is_loaded_for_prompts_alone(shared: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from service.models.tokenizer import Tokenizer\n"
        f"tokenizer = Tokenizer(Path(sys.argv[1]).read_text(), {N_VOCAB}, False)\n"
        "tokenizer.guest_tokens(), tokenizer.decode([383])\n"
        "assert 'tokenizers' not in sys.modules\n"
        "tokenizer.encode('a prompt')\n"
        "assert 'tokenizers' in sys.modules"
    )
    path = shared / "models/tiny_en/tokenizer.json"
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=True, timeout=60)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"model": {"type": "BPE"}}', "[" * 100_000])
def test_what_is_no_tokenizer_is_one_clear_error(text: str) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        Tokenizer(text, N_VOCAB, False)


def test_a_text_tokens_bytes_are_those_of_its_text(synthetic_json: str) -> None:
    library = Tokenizer(synthetic_json, n_vocab(synthetic_json), is_multilingual=False)
    for text in (" Ask not what", "naïve 名前 \u2028\x7f\xad\x00"):
        ids = library.encode(text)
        assert b"".join(library.token_bytes(token) for token in ids) == text.encode()
    for token in (-1, library.eot, library.n_vocab):
        with pytest.raises(ValueError, match="isn't text"):
            library.token_bytes(token)
