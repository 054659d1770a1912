"""A training state → a Hugging Face Whisper folder with the averaged weights in f16."""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from tools.train.features import FRAMES_PER_SECOND, HOP_LENGTH, N_FFT, N_MELS, SAMPLE_RATE
from tools.train.model import Dims, Whisper
from tools.train.student import alignment_heads
from tools.train.tokenizer import special_ids, suppressed

MAX_INITIAL_TIMESTAMP = 50  # 1 s, as in Whisper
NUM_BEAMS = 8  # the reference's command line takes 5; a small model gains more by them than a large one
OTHERS_MATTER = 30.0  # how much <|endoftext|> counts beside a piece of text when the timestamps are lowered


def config(dims: Dims, ids: dict[str, int]) -> dict[str, Any]:
    """`config.json`."""
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "torch_dtype": "float16",
        "activation_function": "gelu",
        "scale_embedding": False,
        "decoder_start_token_id": ids["startoftranscript"],
        "bos_token_id": ids["endoftext"],
        "eos_token_id": ids["endoftext"],
        "pad_token_id": ids["endoftext"],
        "vocab_size": dims.n_vocab,
        "num_mel_bins": dims.n_mels,
        "encoder_layers": dims.n_audio_layer,
        "encoder_attention_heads": dims.n_audio_head,
        "decoder_layers": dims.n_text_layer,
        "decoder_attention_heads": dims.n_text_head,
        "decoder_ffn_dim": 4 * dims.n_text_state,
        "encoder_ffn_dim": 4 * dims.n_audio_state,
        "d_model": dims.n_audio_state,
        "max_source_positions": dims.n_audio_ctx,
        "max_target_positions": dims.n_text_ctx,
    }


def generation_config(dims: Dims, tokenizer: Tokenizer) -> dict[str, Any]:
    """`generation_config.json`: what decoding needs besides the weights."""
    ids = special_ids(tokenizer)
    return {
        "alignment_heads": [list(pair) for pair in alignment_heads(dims)],
        "begin_suppress_tokens": [tokenizer.encode(" ").ids[0], ids["endoftext"]],
        "suppress_tokens": suppressed(tokenizer),
        "no_timestamps_token_id": ids["notimestamps"],
        "decoder_start_token_id": ids["startoftranscript"],
        "bos_token_id": ids["endoftext"],
        "eos_token_id": ids["endoftext"],
        "pad_token_id": ids["endoftext"],
        "max_length": dims.n_text_ctx,
        "is_multilingual": False,
        "max_initial_timestamp_index": MAX_INITIAL_TIMESTAMP,
        "num_beams": NUM_BEAMS,
        "condition_on_prev_tokens": False,  # it writes on from its own errors instead of listening
    }


def preprocessor_config(dims: Dims) -> dict[str, Any]:
    """`preprocessor_config.json`: the window and the log-mel's parameters."""
    n_frames = 2 * dims.n_audio_ctx
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": N_MELS,
        "sampling_rate": SAMPLE_RATE,
        "n_fft": N_FFT,
        "hop_length": HOP_LENGTH,
        "chunk_length": n_frames // FRAMES_PER_SECOND,
        "n_samples": n_frames * HOP_LENGTH,
        "nb_max_frames": n_frames,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }


def fewer_timestamps(weights: dict[str, Tensor], ids: dict[str, int], nats: float) -> None:
    """Lower the logit of every timestamp by about `nats`, and no other, in place, by the last layer norm's bias.

    Whisper's rules take a timestamp as soon as all of them together outweigh the likeliest piece of text. A model that
    is unsure of its words, as a small one is, so ends a segment in mid-sentence, and loses the rest of the window.
    """
    table = weights["model.decoder.embed_tokens.weight"].double()
    wanted, matters = torch.zeros(len(table)).double(), torch.ones(len(table)).double()
    wanted[ids["timestamp_begin"] :] = -nats
    matters[ids["endoftext"]] = OTHERS_MATTER
    matters[ids["endoftext"] + 1 : ids["timestamp_begin"]] = 0.0  # never chosen
    square = table.T @ (table * matters[:, None])
    ridge = 1e-3 * square.trace() / len(square) * torch.eye(len(square)).double()
    bias = torch.linalg.solve(square + ridge, table.T @ (matters * wanted))
    name = "model.decoder.layer_norm.bias"
    weights[name] = (weights[name].double() + bias).to(weights[name].dtype)


def mixed(weights: dict[str, Tensor], others: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """The average of two runs, the second begun from the first, with `share` of the others (Wortsman et al., 2022)."""
    return {name: torch.lerp(value, others[name], share) for name, value in weights.items()}


def export(weights: dict[str, Tensor], dims: Dims, tokenizer_file: Path, out: Path, nats: float = 0.0) -> None:
    """Write the folder. `weights` are a student's or its average's; its helpers are left out.

    `nats` is for `fewer_timestamps`.
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    kept = {name: value.to(torch.float16).contiguous() for name, value in weights.items() if name.startswith("model.")}
    if nats:
        fewer_timestamps(kept, special_ids(tokenizer), nats)
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    if tokenizer_file.resolve() != (out / "tokenizer.json").resolve():
        shutil.copyfile(tokenizer_file, out / "tokenizer.json")
    files = {
        "config.json": config(dims, special_ids(tokenizer)),
        "generation_config.json": generation_config(dims, tokenizer),
        "preprocessor_config.json": preprocessor_config(dims),
    }
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, indent=1) + "\n")


def load(folder: Path) -> tuple[Whisper, Tokenizer]:
    """A Hugging Face Whisper folder → the model in f32 and its tokenizer."""
    saved = json.loads((folder / "config.json").read_text())
    dims = Dims(
        n_vocab=saved["vocab_size"],
        n_mels=saved["num_mel_bins"],
        n_audio_ctx=saved["max_source_positions"],
        n_audio_state=saved["d_model"],
        n_audio_head=saved["encoder_attention_heads"],
        n_audio_layer=saved["encoder_layers"],
        n_text_ctx=saved["max_target_positions"],
        n_text_state=saved["d_model"],
        n_text_head=saved["decoder_attention_heads"],
        n_text_layer=saved["decoder_layers"],
    )
    model = Whisper(dims)
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): value.float() for name, value in weights.items()})
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def main() -> None:
    """`python -m tools.train.export --state FILE --tokenizer FILE --out FOLDER`"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="state.pt of a training run")
    parser.add_argument("--mix", type=Path, help="another run's state.pt, to be averaged with it")
    parser.add_argument("--share", type=float, default=0.4, help="of the other run's weights in the average, 0 to 1")
    parser.add_argument("--tokenizer", type=Path, required=True, help="its tokenizer.json")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--fewer-timestamps", type=float, default=1.0, help="nats that a timestamp is made less likely by"
    )
    options = parser.parse_args()
    state = torch.load(options.state, map_location="cpu")
    weights = state["average"]
    if options.mix:
        weights = mixed(weights, torch.load(options.mix, map_location="cpu")["average"], options.share)
    export(weights, Dims(**state["dims"]), options.tokenizer, options.out, options.fewer_timestamps)


if __name__ == "__main__":
    main()
