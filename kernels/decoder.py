"""Whisper's decoder as WGSL dispatches: token ids in, chosen tokens, log-probabilities or logits out; at most 34 dispatches a token.

Cross-attention memory, written by the encoder's compute and read by `decoder_attention_cross.wgsl`. One pair of buffers a decoder
layer, f16 packed two a u32 (`pack2x16float`, the lower index in the low half), read here as `array<vec4<u32>>`, 8 neighbouring
columns an element. Column `c` of `n_text_state` belongs to head `c / head_dim`, as everywhere in Whisper.

    keys   (n_text_state / 8, n_audio_ctx, 8): element [c / 8, key, c % 8] is column c of `audio_states[key] @ key.weight.T`
    values (n_audio_ctx, n_text_state / 8, 8): element [key, c / 8, c % 8] is column c of `audio_states[key] @ value.weight.T + value.bias`

So neighbouring invocations load neighbouring keys for q·k (key fastest) and neighbouring columns for p·v (column fastest). Keys are
unscaled: `head_dim ** -0.5` is multiplied into the query. No padding: each buffer has exactly n_audio_ctx * n_text_state * 2 bytes.
The encoder context hands them over as `cross: Sequence[tuple[Buffer, Buffer]]`, (keys, values) for each decoder layer.
"""
