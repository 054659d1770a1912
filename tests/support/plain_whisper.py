"""Whisper as in openai/whisper's model.py, in float64: slow, and hard to get wrong."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.checkpoints.load import Checkpoint

Wide = NDArray[np.float64]


class PlainWhisper:
    """A checkpoint's encoder and decoder, without cache, fusion or batch."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.dims = checkpoint.dims
        self.arrays = {name: array.astype(np.float64) for name, array in checkpoint.arrays.items()}

    def encode(self, mel: NDArray[Any]) -> Wide:
        """(n_mels, n_frames) → (n_audio_ctx, n_audio_state)."""
        x = self._gelu(self._conv("encoder.conv1", mel.astype(float), 1))
        x = self._gelu(self._conv("encoder.conv2", x, 2)).T
        x = x + self.arrays["encoder.positional_embedding"]
        for layer in range(self.dims.n_audio_layer):
            name = f"encoder.blocks.{layer}"
            y = self._norm(f"{name}.attn_ln", x)
            x = x + self._attention(f"{name}.attn", y, y, self.dims.n_audio_head, causal=False)[0]
            x = x + self._mlp(name, x)
        return self._norm("encoder.ln_post", x)

    def decode(self, tokens: list[int], states: Wide) -> tuple[Wide, list[Wide]]:
        """(n_tokens, n_vocab) logits, and each layer's (n_head, n_tokens, n_audio_ctx) cross-attention scores."""
        embedding = self.arrays["decoder.token_embedding.weight"]
        x = embedding[tokens] + self.arrays["decoder.positional_embedding"][: len(tokens)]
        scores = []
        for layer in range(self.dims.n_text_layer):
            name = f"decoder.blocks.{layer}"
            y = self._norm(f"{name}.attn_ln", x)
            x = x + self._attention(f"{name}.attn", y, y, self.dims.n_text_head, causal=True)[0]
            y = self._norm(f"{name}.cross_attn_ln", x)
            added, score = self._attention(f"{name}.cross_attn", y, states, self.dims.n_text_head, causal=False)
            scores.append(score)
            x = x + added
            x = x + self._mlp(name, x)
        return self._norm("decoder.ln", x) @ embedding.T, scores

    def _linear(self, name: str, x: Wide) -> Wide:
        y: Wide = x @ self.arrays[f"{name}.weight"].T + self.arrays.get(f"{name}.bias", np.zeros(1))
        return y

    def _norm(self, name: str, x: Wide) -> Wide:
        y: Wide = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return y * self.arrays[f"{name}.weight"] + self.arrays[f"{name}.bias"]

    def _gelu(self, x: Wide) -> Wide:
        y: Wide = x * np.vectorize(lambda value: 0.5 * math.erfc(-value / math.sqrt(2)))(x)
        return y

    def _mlp(self, name: str, x: Wide) -> Wide:
        hidden = self._gelu(self._linear(f"{name}.mlp.0", self._norm(f"{name}.mlp_ln", x)))
        return self._linear(f"{name}.mlp.2", hidden)

    def _conv(self, name: str, x: Wide, stride: int) -> Wide:
        weight, bias = self.arrays[f"{name}.weight"], self.arrays[f"{name}.bias"]
        padded = np.pad(x, ((0, 0), (1, 1)))
        columns = [np.tensordot(weight, padded[:, at : at + 3], 2) for at in range(0, x.shape[1], stride)]
        return np.stack(columns, axis=1) + bias[:, None]

    def _attention(self, name: str, x: Wide, over: Wide, n_head: int, *, causal: bool) -> tuple[Wide, Wide]:
        q, k = self._linear(f"{name}.query", x), self._linear(f"{name}.key", over)
        v = self._linear(f"{name}.value", over)
        d = x.shape[1] // n_head
        results, scores = [], []
        for head in range(n_head):
            columns = slice(head * d, (head + 1) * d)
            score = q[:, columns] @ k[:, columns].T / math.sqrt(d)
            scores.append(score)
            weights = np.exp(np.tril(score) + np.triu(np.full(score.shape, -np.inf), 1) if causal else score)
            results.append(weights / weights.sum(-1, keepdims=True) @ v[:, columns])
        return self._linear(f"{name}.out", np.concatenate(results, axis=1)), np.stack(scores)
