"""Greedy decoding in PyTorch with Whisper's timestamp rules and sliding window, for scoring while training.

Source: openai/whisper `decoding.py` (`ApplyTimestampRules`) and `transcribe.py` (seek).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from tools.train.export import load
from tools.train.features import N_MELS, Floats, log10_mel, whisper_scale
from tools.train.model import Whisper

NO_SPEECH = 0.6  # above this, and below the next, a window is skipped
LOGPROB = -1.0


@dataclass
class Decoded:
    """One window's tokens after the prompt, without <|endoftext|>, and Whisper's two measures of them."""

    tokens: list[int]
    avg_logprob: float
    no_speech_prob: float


class Transcriber:
    """A model folder, ready to transcribe clips of any length."""

    def __init__(self, folder: Path, timestamps: bool = True) -> None:
        self.model: Whisper
        self.tokenizer: Tokenizer
        self.model, self.tokenizer = load(folder)
        generation = json.loads((folder / "generation_config.json").read_text())
        self.timestamps = timestamps
        self.end = int(generation["eos_token_id"])
        self.start = int(generation["decoder_start_token_id"])
        self.no_timestamps = int(generation["no_timestamps_token_id"])
        self.no_speech = int(self.tokenizer.token_to_id("<|nospeech|>") or self.no_timestamps - 1)
        self.begin = self.no_timestamps + 1
        self.suppressed = [*generation["suppress_tokens"], self.no_timestamps]
        self.begin_suppressed = generation["begin_suppress_tokens"]
        self.latest_start = int(generation["max_initial_timestamp_index"])
        self.n_frames = 2 * self.model.dims.n_audio_ctx

    @torch.no_grad()  # type: ignore[untyped-decorator, unused-ignore]
    def decode(self, audio: Tensor) -> list[Decoded]:
        """(batch, n_audio_ctx, n_audio_state) states of padded windows → what is said in each."""
        prompt = [self.start] if self.timestamps else [self.start, self.no_timestamps]
        rows = [list(prompt) for _ in audio]
        sums = torch.zeros(len(rows))
        quiet: list[float] = []
        done = [False] * len(rows)
        while not all(done) and len(rows[0]) < self.model.dims.n_text_ctx // 2:
            logits = self.model.decoder(torch.tensor(rows), audio)
            if not quiet:
                quiet = logits[:, 0].softmax(dim=-1)[:, self.no_speech].tolist()
            last = logits[:, -1]
            for row, values in zip(rows, last, strict=True):
                self.rules(row[len(prompt) :], values)
            log_probs = F.log_softmax(last, dim=-1)
            best = log_probs.argmax(dim=-1)
            for index, row in enumerate(rows):
                token = self.end if done[index] else int(best[index])
                sums[index] += 0.0 if done[index] else float(log_probs[index, token])
                done[index] = done[index] or token == self.end
                row.append(token)
        found = []
        for row, total, silence in zip(rows, sums.tolist(), quiet, strict=True):
            tokens = [token for token in row[len(prompt) :] if token != self.end]
            found.append(Decoded(tokens, total / (len(tokens) + 1), silence))
        return found

    def rules(self, said: list[int], logits: Tensor) -> None:
        """Rule out, in place, what may not come after the tokens `said`; `logits` is (n_vocab,)."""
        never = -torch.inf
        logits[self.suppressed] = never
        if not said:
            logits[self.begin_suppressed] = never
        if not self.timestamps:
            return
        stamps = [token for token in said if token >= self.begin]
        if said and said[-1] >= self.begin:
            if len(said) < 2 or said[-2] >= self.begin:
                logits[self.begin :] = never
            else:
                logits[: self.end] = never
        if stamps:
            ends_segment = said[-1] >= self.begin and len(said) > 1 and said[-2] < self.begin
            logits[self.begin : stamps[-1] + (0 if ends_segment else 1)] = never
        if not said:
            logits[: self.begin] = never
            logits[self.begin + self.latest_start + 1 :] = never
        log_probs = F.log_softmax(logits, dim=-1)
        if log_probs[self.begin :].logsumexp(dim=-1) > log_probs[: self.begin].max():
            logits[: self.begin] = never

    def transcribe(self, clips: list[Floats]) -> list[str]:
        """Clips of any length, (n_samples,) at 16 kHz → their texts; each round decodes one window of every clip."""
        mels = [whisper_scale(log10_mel(clip)) for clip in clips]
        seeks = [0] * len(clips)
        texts = [""] * len(clips)
        while left := [index for index, mel in enumerate(mels) if seeks[index] < len(mel)]:
            windows = torch.zeros(len(left), self.n_frames, N_MELS)
            for row, index in zip(windows, left, strict=True):
                piece = torch.from_numpy(mels[index][seeks[index] : seeks[index] + self.n_frames])
                row[: len(piece)] = piece
            with torch.no_grad():
                audio = self.model.encoder(windows.transpose(1, 2))
            for index, result in zip(left, self.decode(audio), strict=True):
                size = min(self.n_frames, len(mels[index]) - seeks[index])
                tokens = result.tokens
                if result.no_speech_prob > NO_SPEECH and result.avg_logprob < LOGPROB:
                    tokens = []
                kept, step = self.advance(tokens, size)
                texts[index] += self.tokenizer.decode([token for token in kept if token < self.end])
                seeks[index] += step
        return [text.strip() for text in texts]

    def advance(self, tokens: list[int], size: int) -> tuple[list[int], int]:
        """A window's tokens and its frames of content → the tokens that are final, and the frames to go on by."""
        stamps = [position for position, token in enumerate(tokens) if token >= self.begin]
        pairs = [position for position in stamps if position > 0 and tokens[position - 1] >= self.begin]
        single_ending = len(tokens) > 1 and tokens[-1] >= self.begin > tokens[-2]
        if not pairs or single_ending:
            return tokens, size
        return tokens[: pairs[-1]], max(2, 2 * (tokens[pairs[-1] - 1] - self.begin))
