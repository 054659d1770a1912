"""A real Whisper made by arithmetic instead of training: a small Hugging Face folder for tests that says one sentence.

Its attention adds nothing. Its decoder's only layer holds an associative memory: one hidden unit for each token of the
sentence answers to that token and adds the next one's embedding. So whatever it hears, it says `SENTENCE` in every
window, with timestamps, and every part of the service that stands around a model can be tested with one.
"""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SENTENCE = "Ask not what"
WORDS = (" Ask", " not", " what")
WINDOW_SECONDS = 3
N_MELS, N_AUDIO_CTX, N_STATE, N_HEAD, N_TEXT_CTX = 80, WINDOW_SECONDS * 50, 128, 2, 64
SPECIAL = ("endoftext", "startoftranscript", "en", "de", "translate", "transcribe", "startoflm", "startofprev")
SPECIAL_END = ("nospeech", "notimestamps")
N_TIMESTAMPS = WINDOW_SECONDS * 50 + 1  # 0.00 to the window's end in steps of 20 ms
SENTENCE_SECONDS = 2.0

Arrays = dict[str, NDArray[np.float32]]


def _tokenizer() -> Tokenizer:
    """Bytes, the three words, then the special tokens and timestamps in Whisper's order."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = list(word.replace(" ", "Ġ"))
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            if pair not in merges:
                merges.append(pair)
                vocabulary["".join(pair)] = len(vocabulary)
            pieces[:2] = ["".join(pair)]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([f"<|{name}|>" for name in (*SPECIAL, *SPECIAL_END)])
    tokenizer.add_tokens([f"<|{step / 50:.2f}|>" for step in range(N_TIMESTAMPS)])
    return tokenizer


def _linear(arrays: Arrays, name: str, n_out: int, n_in: int, *, bias: bool = True) -> None:
    arrays[f"{name}.weight"] = np.zeros((n_out, n_in), np.float32)
    if bias:
        arrays[f"{name}.bias"] = np.zeros(n_out, np.float32)


def _layer_norm(arrays: Arrays, name: str) -> None:
    arrays[f"{name}.weight"] = np.ones(N_STATE, np.float32)
    arrays[f"{name}.bias"] = np.zeros(N_STATE, np.float32)


def _block(arrays: Arrays, prefix: str, attentions: tuple[str, ...]) -> None:
    for attention in attentions:
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            _linear(arrays, f"{prefix}.{attention}.{projection}", N_STATE, N_STATE, bias=projection != "k_proj")
        _layer_norm(arrays, f"{prefix}.{attention}_layer_norm")
    _linear(arrays, f"{prefix}.fc1", 4 * N_STATE, N_STATE)
    _linear(arrays, f"{prefix}.fc2", N_STATE, 4 * N_STATE)
    _layer_norm(arrays, f"{prefix}.final_layer_norm")


def _arrays(tokenizer: Tokenizer, chain: list[int]) -> Arrays:
    arrays: Arrays = {
        "model.encoder.conv1.weight": np.zeros((N_STATE, N_MELS, 3), np.float32),
        "model.encoder.conv1.bias": np.zeros(N_STATE, np.float32),
        "model.encoder.conv2.weight": np.zeros((N_STATE, N_STATE, 3), np.float32),
        "model.encoder.conv2.bias": np.zeros(N_STATE, np.float32),
        "model.decoder.embed_positions.weight": np.zeros((N_TEXT_CTX, N_STATE), np.float32),
    }
    position = np.arange(N_AUDIO_CTX)[:, None] / 10_000 ** (np.arange(N_STATE // 2) / (N_STATE // 2 - 1))
    sinusoids = np.concatenate([np.sin(position), np.cos(position)], axis=1)
    arrays["model.encoder.embed_positions.weight"] = sinusoids.astype(np.float32)
    _block(arrays, "model.encoder.layers.0", ("self_attn",))
    _block(arrays, "model.decoder.layers.0", ("self_attn", "encoder_attn"))
    _layer_norm(arrays, "model.encoder.layer_norm")
    _layer_norm(arrays, "model.decoder.layer_norm")
    embedding = np.random.default_rng(0).standard_normal((tokenizer.get_vocab_size(), N_STATE)).astype(np.float32)
    embedding -= embedding.mean(axis=1, keepdims=True)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    arrays["model.decoder.embed_tokens.weight"] = embedding
    for unit, (token, following) in enumerate(pairwise(chain)):
        _answer(arrays, unit, token, following)
    # Logits are the last layer norm's output times the embeddings: longer ones make the choice certain.
    arrays["model.decoder.layer_norm.weight"] *= 2
    return arrays


def _answer(arrays: Arrays, unit: int, token: int, following: int) -> None:
    """Make the hidden `unit` respond to `token` with `following`."""
    embedding = arrays["model.decoder.embed_tokens.weight"]
    # The layer norm makes the embedding √N_STATE long: its own unit hears that, any other a third of it at most.
    arrays["model.decoder.layers.0.fc1.weight"][unit] = embedding[token] * 4
    arrays["model.decoder.layers.0.fc1.bias"][unit] = -2 * np.sqrt(N_STATE)
    arrays["model.decoder.layers.0.fc2.weight"][:, unit] = embedding[following]


def save_synthetic(folder: Path, *, multilingual: bool = False) -> Path:
    """Write config.json, generation_config.json, tokenizer.json and model.safetensors into `folder`, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()

    def token(name: str) -> int:
        found = tokenizer.token_to_id(name)
        assert found is not None, name
        return found

    prompt_end = "<|transcribe|>" if multilingual else "<|startoftranscript|>"
    said = [token(word.replace(" ", "Ġ")) for word in WORDS]
    end = token(f"<|{SENTENCE_SECONDS:.2f}|>")
    chain = [token(prompt_end), token("<|0.00|>"), *said, end, token("<|endoftext|>")]
    arrays = _arrays(tokenizer, chain)
    if multilingual:
        # The detected language is German; a translation has only the last word.
        for unit, (before, after) in enumerate(
            [("<|startoftranscript|>", "<|de|>"), ("<|translate|>", "<|0.10|>"), ("<|0.10|>", "Ġwhat")], len(chain)
        ):
            _answer(arrays, unit, token(before), token(after))
    save_file({name: array.astype(np.float16) for name, array in arrays.items()}, folder / "model.safetensors")
    sizes = {
        "d_model": N_STATE,
        "vocab_size": tokenizer.get_vocab_size(),
        "num_mel_bins": N_MELS,
        "max_source_positions": N_AUDIO_CTX,
        "max_target_positions": N_TEXT_CTX,
    }
    for half in ("encoder", "decoder"):
        sizes |= {f"{half}_layers": 1, f"{half}_attention_heads": N_HEAD, f"{half}_ffn_dim": 4 * N_STATE}
    (folder / "config.json").write_text(json.dumps({"model_type": "whisper", **sizes}))
    (folder / "generation_config.json").write_text(json.dumps({"is_multilingual": multilingual}))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
