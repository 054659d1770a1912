"""The model in training with what the export drops, a CTC head and the teacher's projection; and its losses."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.train.batches import IGNORE, Batch
from tools.train.model import Dims, Whisper
from tools.train.shards import TEACHER_STATES
from tools.train.windows import CTC_SYMBOLS


def bridge(states: Tensor, principal: Tensor, positions: Tensor) -> Tensor:
    """Teacher's states (batch, n, 384), 0 where nobody speaks → the encoder's aim, (batch, n, n_audio_state).

    The position, taken out of the teacher's states, is put back as the student's own, for timestamps; each vector has
    mean 0 and deviation 1, as the encoder's last layer norm makes them.
    """
    positions = positions[: states.shape[1]]
    return F.layer_norm(states @ principal + 0.5 * positions, positions.shape[1:])


class Student(nn.Module):  # type: ignore[misc]
    """The model with two helpers that the export drops: a CTC head, and the teacher's states in the student's width."""

    def __init__(self, dims: Dims, principal: Tensor | None = None) -> None:
        super().__init__()
        self.model = Whisper(dims)
        self.ctc = nn.Linear(dims.n_audio_state, len(CTC_SYMBOLS) + 1)
        self.principal: Tensor  # (384, n_audio_state)
        empty = torch.zeros(TEACHER_STATES, dims.n_audio_state)
        self.register_buffer("principal", empty if principal is None else principal)

    def bridge(self, states: Tensor) -> Tensor:
        """`bridge` with this student's projection and positions."""
        return bridge(states, self.principal, self.model.encoder.embed_positions.weight)

    def losses(self, batch: Batch, part: str) -> dict[str, Tensor]:
        """The losses of a batch, each a mean that does not depend on the batch's size.

        Part "encoder" learns the teacher's states and CTC; "decoder" learns to read those states, blurred as much as a
        young encoder will blur them; "joint" does all at once on the student's own states.
        """
        wanted = self.bridge(batch.states)
        found = {}
        if part == "decoder":
            blur = torch.rand(len(wanted), 1, 1, device=wanted.device) * 0.7
            audio = F.layer_norm(wanted + blur * torch.randn_like(wanted), wanted.shape[-1:])
        else:
            audio = self.model.encoder(batch.mel)
            if bool(self.principal.any()):
                difference = (audio.float() - wanted).square().mean(dim=-1)
                found["teacher"] = (difference * batch.heard).sum() / batch.heard.sum().clamp(min=1.0)
        written = batch.ctc_lengths > 0
        if bool(written.any()):
            log_probs = self.ctc(audio[written]).float().log_softmax(dim=-1).transpose(0, 1)
            n_states = torch.full((log_probs.shape[1],), log_probs.shape[0], dtype=torch.long)
            lengths = batch.ctc_lengths[written]
            found["ctc"] = F.ctc_loss(log_probs, batch.ctc[written], n_states, lengths, zero_infinity=True)
        said = (batch.targets != IGNORE).any(dim=1)
        if part != "encoder" and bool(said.any()):
            logits = self.model.decoder(batch.tokens[said], audio[said], keep=True).float()
            targets = batch.targets[said].flatten()
            found["text"] = F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=IGNORE, label_smoothing=0.05)
            found["guide"] = self.guide_loss(batch.guide[said])
        return found

    def guide_loss(self, guide: Tensor) -> Tensor:
        """How far the alignment heads look from where the words are: 0 is right there, 1 far away."""
        rows = (guide.amax(dim=-1) > 0).sum().clamp(min=1)
        losses = []
        for layer, head in alignment_heads(self.model.dims):
            weights = self.model.decoder.layers[layer].encoder_attn.weights
            losses.append((weights[:, head].float() * guide).sum() / rows)
        return torch.stack(losses).mean()


def alignment_heads(dims: Dims) -> list[tuple[int, int]]:
    """(layer, head) of the cross-attention that is taught to follow the speech: half of every layer but the first."""
    return [(layer, head) for layer in range(1, dims.n_text_layer) for head in range(dims.n_text_head // 2)]
