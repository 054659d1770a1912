"""The tokenizer: byte-level BPE learned from the training text, then Whisper's special and timestamp tokens."""

import argparse
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from tools.train import text

N_PIECES = 1023  # with the 256 bytes; <|endoftext|> is the id after them, as in tiny.en
WINDOW_SECONDS = 10
TIMESTAMP_STEP = 0.02  # seconds
SPECIAL = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
]
SYMBOLS = [
    *'"#()*+/:;<=>@[\\]^_`{|}~',
    *["<<", ">>", "--", "---", "-(", "-[", "((", "))", "(((", ")))", "[[", "]]", "{{", "}}"],
]


def timestamp_name(index: int) -> str:
    """0 → "<|0.00|>", 1 → "<|0.02|>"."""
    return f"<|{index * TIMESTAMP_STEP:.2f}|>"


def train_tokenizer(lines: list[str], n_pieces: int = N_PIECES, window_seconds: int = WINDOW_SECONDS) -> Tokenizer:
    """Lines of text → the tokenizer, with timestamps from <|0.00|> to the window's end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=n_pieces, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((" " + line for line in lines), trainer)
    stamps = [timestamp_name(index) for index in range(round(window_seconds / TIMESTAMP_STEP) + 1)]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    tokenizer.add_tokens([AddedToken(name, special=False) for name in stamps])
    return tokenizer


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """`SPECIAL`'s names without their brackets, and `timestamp_begin` → ids."""
    names = {name[2:-2]: name for name in SPECIAL} | {"timestamp_begin": timestamp_name(0)}
    ids = {key: tokenizer.token_to_id(name) for key, name in names.items()}
    return {key: value for key, value in ids.items() if value is not None}


def suppressed(tokenizer: Tokenizer) -> list[int]:
    """Symbols nobody speaks, and the special tokens that only a prompt holds: what `suppress_tokens` lists."""
    spelled = [tokenizer.encode(prefix + symbol).ids for symbol in SYMBOLS for prefix in ("", " ")]
    found = {ids[0] for ids in spelled if len(ids) == 1}
    special = special_ids(tokenizer)
    names = ("startoftranscript", "en", "translate", "transcribe", "startoflm", "startofprev", "nospeech")
    return sorted(found.union(special[name] for name in names))


def main() -> None:
    """`python -m tools.train.tokenizer --text FOLDER --out FILE`"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="folder of public-domain .txt files")
    parser.add_argument("--out", type=Path, required=True, help="the tokenizer.json to write")
    options = parser.parse_args()
    train_tokenizer([line for part in text.read_corpus(options.text) for line in part]).save(str(options.out))


if __name__ == "__main__":
    main()
