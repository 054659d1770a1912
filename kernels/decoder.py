"""Whisper's decoder as WGSL dispatches: token ids in, chosen tokens, log-probabilities or logits out; at most 34 dispatches a token.

A model makes it with `DecoderGraph(device, checkpoint, cross_of)`: `cross_of(context)` returns the `CrossMemory` (see
`kernels/cross_memory.py` for its layout) of one of this model's encoder contexts that has computed, and raises ValueError for any other
context. The decoder holds it for as long as it attends to it.
"""
