"""Whisper's encoder and decoder as WGSL dispatches (WebGPU) or NumPy calls (CPU). Knows no HTTP and no Wasm."""
