"""A checkpoint's weights for NumPy: converted to f32 once, maps with the same input joined, scales folded in."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kernels.checkpoints.load import Checkpoint
from kernels.cpu.cores import Cores
from kernels.cpu.numpy_ops import Float, as_f32, gelu, layer_norm, linear, query_scale


class Affine(NamedTuple):
    """Weight and bias: of a layer norm, both [n_state]; of a linear map, [n_out, n_in] and [n_out]."""

    weight: Float
    bias: Float


@dataclass(frozen=True)
class Block:
    """One residual block; `qkv` gives scaled queries, keys and values. Only decoder blocks have cross-attention."""

    attn_ln: Affine
    qkv: Affine  # [3 · n_state, n_state]
    out: Affine
    cross_attn_ln: Affine | None
    cross_query: Affine | None
    cross_out: Affine | None
    mlp_ln: Affine
    mlp_up: Affine  # [4 · n_state, n_state]
    mlp_down: Affine

    def mlp(self, x: Float, cores: Cores | None = None) -> Float:
        """(rows, n_state) → what the block's MLP adds to it."""
        hidden = layer_norm(x, *self.mlp_ln)
        hidden = gelu(linear(hidden, *self.mlp_up, cores))
        return linear(hidden, *self.mlp_down, cores)


@dataclass(frozen=True)
class Weights:
    """All weights of a model. Convolutions are [n_out, 3, n_in], to match conv_windows()."""

    conv1: Affine
    conv2: Affine
    audio_positions: Float  # [n_audio_ctx, n_state]
    encoder: tuple[Block, ...]
    ln_post: Affine
    cross_kv: Affine  # [n_text_layer · 2 · n_state, n_state]: keys, then values, of every decoder block
    token_embedding: Float  # [n_vocab, n_state], also the output's weight
    text_positions: Float  # [n_text_ctx, n_state]
    decoder: tuple[Block, ...]
    ln: Affine


def load_weights(checkpoint: Checkpoint) -> Weights:
    """Copy a checkpoint's arrays to f32 and release the file's pages, so that only one copy stays in memory."""
    arrays, dims = checkpoint.arrays, checkpoint.dims
    state = dims.n_text_state

    def affine(name: str) -> Affine:
        return Affine(as_f32(arrays[f"{name}.weight"]), as_f32(arrays[f"{name}.bias"]))

    def convolution(name: str) -> Affine:
        weight = arrays[f"{name}.weight"].transpose(0, 2, 1)
        return Affine(as_f32(weight).reshape(len(weight), -1), as_f32(arrays[f"{name}.bias"]))

    def scaled(array: Float, n_head: int) -> Float:
        array *= np.float32(query_scale(state, n_head))  # a power of two for every Whisper (d = 64), so exact
        return array

    def fused(names: list[str]) -> Affine:
        joined = Affine(np.empty((len(names) * state, state), np.float32), np.zeros(len(names) * state, np.float32))
        for index, name in enumerate(names):
            rows = slice(index * state, (index + 1) * state)
            joined.weight[rows] = arrays[f"{name}.weight"]
            if f"{name}.bias" in arrays:  # keys have none
                joined.bias[rows] = arrays[f"{name}.bias"]
        return joined

    def block(name: str, n_head: int, cross: bool) -> Block:
        qkv = fused([f"{name}.attn.{part}" for part in ("query", "key", "value")])
        scaled(qkv.weight[:state], n_head)
        scaled(qkv.bias[:state], n_head)
        query = affine(f"{name}.cross_attn.query") if cross else None
        if query is not None:
            scaled(query.weight, n_head)
            scaled(query.bias, n_head)
        loaded = Block(
            attn_ln=affine(f"{name}.attn_ln"),
            qkv=qkv,
            out=affine(f"{name}.attn.out"),
            cross_attn_ln=affine(f"{name}.cross_attn_ln") if cross else None,
            cross_query=query,
            cross_out=affine(f"{name}.cross_attn.out") if cross else None,
            mlp_ln=affine(f"{name}.mlp_ln"),
            mlp_up=affine(f"{name}.mlp.0"),
            mlp_down=affine(f"{name}.mlp.2"),
        )
        checkpoint.release_pages()
        return loaded

    cross = [
        f"decoder.blocks.{layer}.cross_attn.{part}" for layer in range(dims.n_text_layer) for part in ("key", "value")
    ]
    # The largest tensor first: its pages are released before the other weights take memory.
    token_embedding = as_f32(arrays["decoder.token_embedding.weight"])
    checkpoint.release_pages()
    return Weights(
        conv1=convolution("encoder.conv1"),
        conv2=convolution("encoder.conv2"),
        audio_positions=as_f32(arrays["encoder.positional_embedding"]),
        encoder=tuple(block(f"encoder.blocks.{i}", dims.n_audio_head, False) for i in range(dims.n_audio_layer)),
        ln_post=affine("encoder.ln_post"),
        cross_kv=fused(cross),
        token_embedding=token_embedding,
        text_positions=as_f32(arrays["decoder.positional_embedding"]),
        decoder=tuple(block(f"decoder.blocks.{i}", dims.n_text_head, True) for i in range(dims.n_text_layer)),
        ln=affine("decoder.ln"),
    )
