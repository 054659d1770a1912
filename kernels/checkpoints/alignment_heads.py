"""The cross-attention heads that follow the audio and give word times, for OpenAI's models.

Source: openai/whisper, `_ALIGNMENT_HEADS`. A file that lists its own heads wins; .pt, ggml and Burn files list none.
"""

from pathlib import Path

from kernels.checkpoints.common import Dimensions

Heads = tuple[tuple[int, int], ...]  # (layer, head)

# (n_audio_layer, n_text_layer, n_text_head, n_vocab) → layer.head
_OF_DIMS = {
    (4, 4, 6, 51_864): "1.0 2.0 2.5 3.0 3.1 3.2 3.3 3.4",  # tiny.en
    (4, 4, 6, 51_865): "2.2 3.0 3.2 3.3 3.4 3.5",  # tiny
    (6, 6, 8, 51_864): "3.3 4.7 5.1 5.5 5.7",  # base.en
    (6, 6, 8, 51_865): "3.1 4.2 4.3 4.7 5.1 5.2 5.4 5.6",  # base
    (12, 12, 12, 51_864): (  # small.en
        "6.6 7.0 7.3 7.8 8.2 8.5 8.7 9.0 9.4 9.8 9.10 10.0 10.1 10.2 10.3 10.6 10.11 11.2 11.4"
    ),
    (12, 12, 12, 51_865): "5.3 5.9 8.0 8.4 8.7 8.8 9.0 9.7 9.9 10.5",  # small
    (24, 24, 16, 51_864): (  # medium.en
        "11.4 14.1 14.12 14.14 15.4 16.0 16.4 16.9 17.12 17.14 18.7 18.10 18.15 20.0 20.3 20.9 20.14 21.12"
    ),
    (24, 24, 16, 51_865): "13.15 15.4 15.15 16.1 20.0 23.4",  # medium
    (32, 32, 20, 51_865): (  # large-v2, and large-v1 unless the file's name says so
        "10.12 13.17 16.11 16.12 16.13 17.15 17.16 18.4 18.11 18.19 19.11 21.2 21.3 22.3 22.9 22.12 23.5 23.7 23.13 "
        "25.5 26.1 26.12 27.15"
    ),
    (32, 32, 20, 51_866): "7.0 10.17 12.18 13.12 16.1 17.14 19.11 21.4 24.1 25.6",  # large-v3
    (32, 4, 20, 51_866): "2.4 2.11 3.3 3.6 3.11 3.14",  # large-v3-turbo
}
_LARGE_V1 = "9.19 11.2 11.4 11.17 22.7 22.11 22.17 23.2 23.15"


def default_heads(weights: Path, dims: Dimensions) -> Heads:
    """OpenAI's heads for a model of these sizes; for any other, the upper half of the layers, as in openai/whisper."""
    known = _OF_DIMS.get((dims.n_audio_layer, dims.n_text_layer, dims.n_text_head, dims.n_vocab))
    if known is None:
        upper = range(dims.n_text_layer // 2, dims.n_text_layer)
        return tuple((layer, head) for layer in upper for head in range(dims.n_text_head))
    if "large-v1" in weights.name and dims.n_text_layer == 32:
        known = _LARGE_V1
    pairs = (pair.split(".") for pair in known.split())
    return tuple((int(layer), int(head)) for layer, head in pairs)
