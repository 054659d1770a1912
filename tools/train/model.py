"""Whisper in PyTorch with Hugging Face's tensor names, any dims, any window up to `n_audio_ctx`; for training only."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Dims:
    """Whisper's dimensions, in openai/whisper's names."""

    n_vocab: int
    n_mels: int = 80
    n_audio_ctx: int = 500  # states: 10 s at 50 a second
    n_audio_state: int = 256
    n_audio_head: int = 4
    n_audio_layer: int = 4
    n_text_ctx: int = 256
    n_text_state: int = 256
    n_text_head: int = 4
    n_text_layer: int = 3


def sinusoids(length: int, channels: int) -> Tensor:
    """(length, channels): sines, then cosines, of geometrically spaced wavelengths: Whisper's encoder positions."""
    scales = torch.exp(-torch.log(torch.tensor(10_000.0)) / (channels // 2 - 1) * torch.arange(channels // 2))
    angles = torch.arange(length)[:, None] * scales[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Attention(nn.Module):  # type: ignore[misc]
    """Multi-head attention; the key projection has no bias."""

    def __init__(self, n_state: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.q_proj = nn.Linear(n_state, n_state)
        self.k_proj = nn.Linear(n_state, n_state, bias=False)
        self.v_proj = nn.Linear(n_state, n_state)
        self.out_proj = nn.Linear(n_state, n_state)
        self.weights: Tensor | None = None  # (batch, n_head, n_query, n_key), kept where `keep` asked

    def split(self, x: Tensor) -> Tensor:
        """(batch, n, n_state) → (batch · n_head, n, 64)."""
        return x.unflatten(-1, (self.n_head, -1)).transpose(1, 2).flatten(0, 1)

    def forward(self, x: Tensor, source: Tensor | None = None, causal: bool = False, keep: bool = False) -> Tensor:
        """(batch, n_query, n_state), attending `source` or itself → the same shape.

        Written out: on a CPU in bf16 PyTorch's fused attention takes four times as long, mostly backwards.
        """
        over = x if source is None else source
        q, k, v = self.split(self.q_proj(x)), self.split(self.k_proj(over)), self.split(self.v_proj(over))
        scores = torch.bmm(q * q.shape[-1] ** -0.5, k.transpose(1, 2))
        if causal:
            later = torch.full(scores.shape[1:], -torch.inf, dtype=scores.dtype, device=scores.device).triu(1)
            scores = scores + later
        weights = scores.softmax(dim=-1)
        if keep:
            self.weights = weights.unflatten(0, (-1, self.n_head))
        mixed = torch.bmm(weights, v).unflatten(0, (-1, self.n_head))
        result: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return result


class Block(nn.Module):  # type: ignore[misc]
    """A pre-norm transformer layer; the decoder's also attends the audio."""

    def __init__(self, n_state: int, n_head: int, cross: bool) -> None:
        super().__init__()
        self.self_attn = Attention(n_state, n_head)
        self.self_attn_layer_norm = nn.LayerNorm(n_state)
        self.encoder_attn = Attention(n_state, n_head) if cross else None
        self.encoder_attn_layer_norm = nn.LayerNorm(n_state) if cross else None
        self.fc1 = nn.Linear(n_state, 4 * n_state)
        self.fc2 = nn.Linear(4 * n_state, n_state)
        self.final_layer_norm = nn.LayerNorm(n_state)

    def forward(self, x: Tensor, audio: Tensor | None = None, keep: bool = False) -> Tensor:
        """(batch, n, n_state) → the same shape; causal where there is audio (batch, n_audio, n_state) to attend."""
        x = x + self.self_attn(self.self_attn_layer_norm(x), causal=audio is not None)
        if self.encoder_attn is not None and self.encoder_attn_layer_norm is not None:
            x = x + self.encoder_attn(self.encoder_attn_layer_norm(x), audio, keep=keep)
        result: Tensor = x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))
        return result


class Encoder(nn.Module):  # type: ignore[misc]
    """Log-mel → audio states."""

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(dims.n_mels, dims.n_audio_state, 3, padding=1)
        self.conv2 = nn.Conv1d(dims.n_audio_state, dims.n_audio_state, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(dims.n_audio_ctx, dims.n_audio_state)
        self.embed_positions.weight = nn.Parameter(sinusoids(dims.n_audio_ctx, dims.n_audio_state), requires_grad=False)
        blocks = [Block(dims.n_audio_state, dims.n_audio_head, cross=False) for _ in range(dims.n_audio_layer)]
        self.layers = nn.ModuleList(blocks)
        self.layer_norm = nn.LayerNorm(dims.n_audio_state)

    def forward(self, mel: Tensor) -> Tensor:
        """(batch, n_mels, n_frames) → (batch, n_frames // 2, n_audio_state)."""
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
        x = x + self.embed_positions.weight[: x.shape[1]]
        for layer in self.layers:
            x = layer(x)
        result: Tensor = self.layer_norm(x)
        return result


class Decoder(nn.Module):  # type: ignore[misc]
    """Tokens and audio states → logits over the next token."""

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(dims.n_vocab, dims.n_text_state)
        self.embed_positions = nn.Embedding(dims.n_text_ctx, dims.n_text_state)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        nn.init.normal_(self.embed_positions.weight, std=0.01)
        blocks = [Block(dims.n_text_state, dims.n_text_head, cross=True) for _ in range(dims.n_text_layer)]
        self.layers = nn.ModuleList(blocks)
        self.layer_norm = nn.LayerNorm(dims.n_text_state)

    def forward(self, tokens: Tensor, audio: Tensor, keep: bool = False) -> Tensor:
        """(batch, n) ids and audio states → (batch, n, n_vocab); `keep` leaves each layer's cross-attention."""
        x = self.embed_tokens(tokens) + self.embed_positions.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, audio, keep)
        logits: Tensor = self.layer_norm(x) @ self.embed_tokens.weight.T
        return logits


class Whisper(nn.Module):  # type: ignore[misc]
    """Encoder and decoder, under Hugging Face's `model.` prefix when exported."""

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.dims = dims
        self.encoder = Encoder(dims)
        self.decoder = Decoder(dims)
