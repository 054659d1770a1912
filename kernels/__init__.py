"""Whisper's encoder and decoder as WGSL dispatches (WebGPU), or in C or NumPy (CPU). Knows no HTTP and no Wasm."""
