"""A Whisper vocabulary in rank order → the tokenizer.json that byte-level BPE libraries read."""

import json
import math
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, AnyStr

from kernels.checkpoints.common import CheckpointError
from kernels.checkpoints.languages import LANGUAGES

N_TIMESTAMPS = 1501  # 0.00 to 30.00 in steps of 0.02 s
TIMESTAMP_SECONDS = 0.02
N_OTHER_SPECIALS = 8  # end and start of text, and the six that follow the languages

# A character for every byte: itself where it is printable, else one from U+0100 on. Source: GPT-2's byte-level BPE.
_PRINTABLE = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_NAMES = [chr(256 + _OTHERS.index(byte)) if byte in _OTHERS else chr(byte) for byte in range(256)]
BYTE_OF = {name: byte for byte, name in enumerate(BYTE_NAMES)}

# As some converters write the special tokens among the ordinary ones.
_SPECIAL = re.compile(rb"<\|[^|]*\|>|\[_[A-Za-z0-9_]+\]")


def tokenizer_json(path: Path, tokens: list[bytes], n_vocab: int, n_audio_ctx: int) -> str:
    """The text of a tokenizer.json for `tokens` in rank order, then Whisper's special tokens up to `n_vocab`.

    `path` names the checkpoint in the CheckpointError for a vocabulary that cannot be one.
    """
    ordinary = tokens[: next((i for i, token in enumerate(tokens) if _SPECIAL.fullmatch(token)), len(tokens))]
    specials = _special_tokens(path, n_vocab - len(ordinary), n_audio_ctx)
    vocab: dict[str, int] = {}
    for rank, token in enumerate(ordinary):
        vocab.setdefault("".join(BYTE_NAMES[byte] for byte in token), rank)
    added = [
        {
            "id": len(ordinary) + index,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": special,
        }
        for index, (content, special) in enumerate(specials)
    ]
    merges = [["".join(BYTE_NAMES[byte] for byte in part) for part in pair] for pair in _merges(ordinary)]
    level: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": level,
            "post_processor": None,
            "decoder": level | {"add_prefix_space": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": vocab,
                "merges": merges,
            },
        },
        ensure_ascii=False,
    )


def _special_tokens(path: Path, count: int, n_audio_ctx: int) -> list[tuple[str, bool]]:
    """The `count` tokens after the ordinary ones, and whether each is special, which timestamps are not."""
    # A model trained on a shorter window may have its timestamps only; OpenAI's all have those of 30 s.
    for n_timestamps in (N_TIMESTAMPS, n_audio_ctx + 1):
        n_languages = count - N_OTHER_SPECIALS - n_timestamps
        if 0 <= n_languages <= len(LANGUAGES):
            break
    else:
        raise CheckpointError(f"{path.name}: {count} special tokens follow its vocabulary, as in no Whisper")
    names = ["endoftext", "startoftranscript", *list(LANGUAGES)[:n_languages]]
    names += ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"]
    specials = [(f"<|{name}|>", True) for name in names]
    return specials + [(f"<|{index * TIMESTAMP_SECONDS:.2f}|>", False) for index in range(n_timestamps)]


def bytes_of(path: Path, tokens: list[str]) -> list[bytes]:
    """Tokens written with BYTE_NAMES as the bytes they mean. Raises CheckpointError for another character."""
    try:
        return [bytes(BYTE_OF[name] for name in token) for token in tokens]
    except KeyError as error:
        raise CheckpointError(f"{path.name}: a token has the character {error}, which stands for no byte") from None


def merged(parts: list[AnyStr], rank_of: Mapping[AnyStr, int], n_least: int = 1) -> list[AnyStr]:
    """Byte-level BPE: again and again, those two neighbours become one whose join ranks lowest.

    Until `n_least` are left, or none of the joins has a rank. Source: `tiktoken`, which openai/whisper uses.
    """
    while len(parts) > n_least:
        ranks = [rank_of.get(left + right, math.inf) for left, right in pairwise(parts)]
        best = min(ranks)
        if best == math.inf:
            break
        at = ranks.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _merges(tokens: list[bytes]) -> list[tuple[bytes, bytes]]:
    """The merges that make each token of more than one byte, in rank order.

    A token's last merge is of the two parts that the merges before it leave; one that they leave in more parts cannot
    be made by merging, and no text encodes to it.
    """
    ranks: dict[bytes, int] = {}
    merges: list[tuple[bytes, bytes]] = []
    for rank, token in enumerate(tokens):
        if len(token) > 1:
            parts = merged([token[i : i + 1] for i in range(len(token))], ranks, n_least=2)
            if len(parts) == 2:
                merges.append((parts[0], parts[1]))
        ranks.setdefault(token, rank)
    return merges
