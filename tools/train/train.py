"""Train Whisper on the shards: cross-entropy, a CTC head, the teacher's states, and attention guided diagonally.

A run trains one of three parts. "encoder" learns to give the teacher's states; meanwhile "decoder" learns to read them,
which needs no encoder; "joint" starts from both and trains the whole. Everything is measured in hours of sound heard,
so a run that is stopped and resumed follows the same schedule; `--hours` may be changed on resuming, and `--minutes`
makes what is left of the schedule fit the time there is, however busy the machine. Weights are
averaged (EMA) for export. State is `OUT/state.pt`, the log `OUT/log.jsonl`. On a CPU, `--workers 2` runs a process of
one thread a core; nobody waits for anybody: a step takes the gradients that are there by then (Chen et al., 2016, call
that asynchronous SGD), so a worker whose core has other work slows down nobody but itself.
"""

import argparse
import copy
import json
import logging
import queue
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, multiprocessing, nn

from tools.train import export
from tools.train.batches import Batch, batches
from tools.train.model import Dims
from tools.train.student import Student
from tools.train.windows import Examples, Stage

# Part → up to this share of the hours → what the windows are like. Short first, so that attention finds the sound.
STAGES = {
    "encoder": (
        (
            0.2,
            Stage(500, joined=0.0, full=0.01, human=0.15, silent=0.03, frames=3600, changed=0.3, prompts=0.0),
        ),
        (
            0.5,
            Stage(500, joined=0.0, full=0.01, human=0.15, silent=0.03, frames=3600, changed=0.8, prompts=0.0),
        ),
        (
            1.01,
            Stage(980, joined=0.05, full=0.1, human=0.15, silent=0.03, frames=4000, changed=0.9, prompts=0.0),
        ),
    ),
    "decoder": (
        (0.1, Stage(260, joined=0.0, full=0.0, human=0.0, silent=0.01, frames=6000, changed=0.0, prompts=0.0)),
        (
            0.45,
            Stage(500, joined=0.0, full=0.1, human=0.0, silent=0.02, frames=8000, changed=0.0, prompts=0.02),
        ),
        (
            1.01,
            Stage(980, joined=0.25, full=0.3, human=0.0, silent=0.02, frames=9000, changed=0.0, prompts=0.15),
        ),
    ),
    "joint": (
        (
            0.8,
            Stage(980, joined=0.12, full=0.08, human=0.25, silent=0.08, frames=7200, changed=0.55, prompts=0.03),
        ),
        (
            1.01,
            Stage(980, joined=0.15, full=0.12, human=0.25, silent=0.2, frames=7200, changed=0.55, prompts=0.1),
        ),
    ),
}
WEIGHTS = {
    "encoder": {"ctc": 0.3, "teacher": 2.0},
    "decoder": {"text": 1.0, "guide": 0.3},
    "joint": {"text": 1.0, "ctc": 0.5, "teacher": 0.7, "guide": 0.3},
}
MUON_RATE = 3e-3
ADAM_RATE = 2e-3
UNTRAINED = {"encoder": "model.decoder.", "decoder": "model.encoder.", "joint": "principal"}
WARMUP_STEPS = 60
# Part → the rate's factor after warm-up, and the share of the hours from which it falls, straight, to nearly nothing.
RATES = {"encoder": (1.0, 0.6), "decoder": (1.0, 0.6), "joint": (0.4, 0.0)}
EMA = 0.995


def prefetched(source: Iterator[Batch], depth: int = 6) -> Iterator[Batch]:
    """The same batches, made ahead in a thread; raises what the source raises."""
    waiting: queue.Queue[Batch | Exception | None] = queue.Queue(maxsize=depth)

    def fill() -> None:
        try:
            for batch in source:
                waiting.put(batch)
            waiting.put(None)
        except Exception as error:
            waiting.put(error)

    threading.Thread(target=fill, daemon=True).start()
    while (made := waiting.get()) is not None:
        if isinstance(made, Exception):
            raise made
        yield made


def to_device(batch: Batch, device: str) -> Batch:
    """The batch with its tensors on the device."""
    if device == "cpu":
        return batch
    moved = {name: value.to(device) for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, **moved)


def trained(student: Student, part: str) -> list[nn.Parameter]:
    """What a part trains of the student."""
    named = student.named_parameters()
    return [value for name, value in named if value.requires_grad and not name.startswith(UNTRAINED[part])]


def find_gradients(student: Student, part: str, batch: Batch, device: str) -> dict[str, Tensor]:
    """Add a batch's gradients to the student's; returns the losses."""
    with torch.autocast(device, dtype=torch.bfloat16):
        losses = student.losses(batch, part)
    total = sum(WEIGHTS[part][name] * value for name, value in losses.items())
    assert isinstance(total, Tensor)
    total.backward()
    return losses


@dataclass(frozen=True)
class WorkerGradients:
    """What a worker hands to the one that steps; in memory that both see."""

    values: Tensor  # (n_trained + 1,): its gradients end to end, and of how many seconds of sound they are
    ready: Event  # set by the giver, cleared by the taker


class Run:
    """One training run: the student, its optimisers, its average, and where it stands."""

    def __init__(
        self,
        student: Student,
        part: str,
        device: str,
        others: Sequence["WorkerGradients"] = (),
        peak: float | None = None,
    ) -> None:
        """`peak` is the learning rate's factor after warm-up, if not the part's own."""
        self.part, self.device, self.others = part, device, others
        self.peak = RATES[part][0] if peak is None else peak
        self.student = student.to(device)
        self.trained = trained(student, part)
        hidden: list[Tensor] = []
        other: list[Tensor] = []
        names = {id(value): name for name, value in self.student.named_parameters()}
        for value in self.trained:
            name = names[id(value)]
            (hidden if ".layers." in name and value.ndim == 2 else other).append(value)
        self.optimisers = (
            torch.optim.Muon(hidden, lr=MUON_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw", ns_steps=4),
            torch.optim.AdamW(other, lr=ADAM_RATE, weight_decay=0.01, betas=(0.9, 0.98)),
        )
        self.average = {name: value.detach().clone() for name, value in self.student.state_dict().items()}
        self.steps = 0
        self.heard = 0.0  # seconds
        self.spent = 0.0  # seconds of wall time

    def rate(self, progress: float) -> float:
        """The learning rate's factor: warm-up, then constant, then a straight fall."""
        fall_from = RATES[self.part][1]
        warm = min(1.0, (self.steps + 1) / WARMUP_STEPS)
        return self.peak * warm * max(0.01, min(1.0, (1.0 - progress) / (1.0 - fall_from)))

    def step(self, batch: Batch, progress: float) -> dict[str, float]:
        """One step down; returns the losses."""
        factor = self.rate(progress)
        for optimiser, rate in zip(self.optimisers, (MUON_RATE, ADAM_RATE), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
        losses = find_gradients(self.student, self.part, to_device(batch, self.device), self.device)
        seconds = self.take_gradients(batch.seconds)
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), 2.0)
        for optimiser in self.optimisers:
            if bool(norm.isfinite()):
                optimiser.step()
            optimiser.zero_grad()
        self.steps += 1
        self.heard += seconds
        keep = min(EMA, self.steps / (self.steps + 20))
        state = self.student.state_dict()
        torch._foreach_lerp_(list(self.average.values()), [state[name] for name in self.average], 1 - keep)
        return {name: float(value.detach()) for name, value in losses.items()} | {"norm": float(norm), "rate": factor}

    def take_gradients(self, seconds: float) -> float:
        """Add the gradients that other workers have ready, weighed by sound; returns the seconds that all of it is."""
        ready = [given for given in self.others if given.ready.is_set()]
        total = seconds + sum(float(given.values[-1]) for given in ready)
        for value in self.trained:
            if ready and value.grad is not None:
                value.grad.mul_(seconds / total)
        for given in ready:
            sizes = [value.numel() for value in self.trained]
            for value, more in zip(self.trained, given.values[:-1].split(sizes), strict=True):
                if value.grad is None:
                    value.grad = torch.zeros_like(value)
                value.grad.add_(more.view_as(value), alpha=float(given.values[-1]) / total)
            given.ready.clear()
        return total

    def save(self, path: Path) -> None:
        """Write everything needed to go on, whole or not at all."""
        dims = vars(self.student.model.dims)
        state: dict[str, Any] = {"student": self.student.state_dict(), "average": self.average, "dims": dims}
        state |= {"optimisers": [optimiser.state_dict() for optimiser in self.optimisers]}
        state |= {"part": self.part, "steps": self.steps, "heard": self.heard, "spent": self.spent}
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)

    def load(self, path: Path) -> None:
        """Go on from `save`."""
        state = torch.load(path, map_location=self.device)
        self.student.load_state_dict(state["student"])
        self.average = state["average"]
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.steps, self.heard, self.spent = state["steps"], state["heard"], state["spent"]


def main() -> None:
    """`python -m tools.train.train --data FOLDER --out FOLDER --hours 80`"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="shards with their states, and tokenizer.json")
    parser.add_argument("--out", type=Path, required=True, help="where state.pt and log.jsonl go; resumes from there")
    parser.add_argument("--part", choices=sorted(STAGES), default="joint")
    parser.add_argument("--start", type=Path, action="append", help="a run's folder to start from; once a part")
    parser.add_argument("--hours", type=float, default=80.0, help="hours of sound to hear in all")
    parser.add_argument("--minutes", type=float, help="end so long from now, whatever was heard till then")
    parser.add_argument("--peak", type=float, help="the learning rate's factor; 0.2 to train a finished model further")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each, on a CPU")
    options = parser.parse_args()
    if options.workers > 1 and options.device != "cpu":
        parser.error("--workers is for a CPU")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(options.data / "tokenizer.json"))
    torch.manual_seed(1)
    bridge = options.data / "bridge.npy"
    principal = torch.from_numpy(np.load(bridge)) if bridge.exists() else None
    student = Student(Dims(n_vocab=tokenizer.get_vocab_size()), principal)
    for folder in options.start or ():
        initialise(student, folder)
    if options.workers > 1:
        torch.set_num_threads(1)
    student.share_memory()
    progress = torch.zeros(1).share_memory_()
    context = multiprocessing.get_context("spawn")
    size = sum(value.numel() for value in trained(student, options.part)) + 1
    others = [WorkerGradients(torch.zeros(size).share_memory_(), context.Event()) for _ in range(options.workers - 1)]
    for number, gradients in enumerate(others, 1):
        arguments = (student, gradients, progress, options, number)
        worker = context.Process(target=work, args=arguments, daemon=True)
        worker.start()
        threading.Thread(target=report_end, args=(worker, number), daemon=True).start()
    train(Run(student, options.part, options.device, others, options.peak), tokenizer, options, progress)


def report_end(worker: SpawnProcess, number: int) -> None:
    """Say so when a worker ends before the training: the rest goes on without it."""
    worker.join()
    if worker.exitcode != -signal.SIGTERM:
        logging.error("worker %d ended with exit code %s", number, worker.exitcode)


def train(run: Run, tokenizer: Tokenizer, options: argparse.Namespace, shared_progress: Tensor) -> None:
    """Take steps, from where the last run stopped to the end of the schedule."""
    torch.manual_seed(2)
    if (options.out / "state.pt").exists():
        run.load(options.out / "state.pt")
    schedule = Schedule(run, options.hours, options.minutes, shared_progress)
    for until, stage in STAGES[options.part]:
        examples = stage_examples(tokenizer, run.student, run.steps, stage, options.part)
        if schedule.progress() < until:
            follow(run, prefetched(batches(options.data, examples)), until, schedule, options.out)


def stage_examples(tokenizer: Tokenizer, student: Student, seed: int, stage: Stage, part: str) -> Examples:
    """The windows of a stage."""
    return Examples(tokenizer, 2 * student.model.dims.n_audio_ctx, seed, stage, part != "decoder")


def work(shared: Student, given: WorkerGradients, progress: Tensor, options: argparse.Namespace, number: int) -> None:
    """Worker `number`: give gradients of the weights as they are, until it or its parent is terminated."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    torch.manual_seed(2 + number)
    tokenizer = Tokenizer.from_file(str(options.data / "tokenizer.json"))
    student = copy.deepcopy(shared)
    for until, stage in STAGES[options.part]:
        examples = stage_examples(tokenizer, student, time.time_ns() % 2**32, stage, options.part)
        for batch in prefetched(batches(options.data, examples)):
            if float(progress) >= until:
                break
            student.load_state_dict(shared.state_dict())
            find_gradients(student, options.part, batch, "cpu")
            values = trained(student, options.part)
            parts = [torch.zeros_like(value) if value.grad is None else value.grad for value in values]
            while given.ready.is_set():
                parent = multiprocessing.parent_process()
                if parent is not None and not parent.is_alive():
                    return
                time.sleep(0.01)
            torch.cat([*(part.flatten() for part in parts), torch.tensor([batch.seconds])], out=given.values)
            given.ready.set()
            student.zero_grad()


def initialise(student: Student, folder: Path) -> None:
    """Start from another run's averaged weights, of its own part only, so that an encoder and a decoder join; or from
    an exported model."""
    if not (folder / "state.pt").exists():
        model, _ = export.load(folder)
        student.model.load_state_dict(model.state_dict())
        return
    state = torch.load(folder / "state.pt", map_location="cpu")
    weights = {name: value for name, value in state["average"].items() if not name.startswith(UNTRAINED[state["part"]])}
    if state["part"] == "decoder":
        weights = {name: value for name, value in weights.items() if name.startswith("model.decoder.")}
    student.load_state_dict(weights, strict=False)


class Schedule:
    """How much of a run is done: by the hours heard, or from where it stood by the clock."""

    def __init__(self, run: Run, hours: float, minutes: float | None = None, shared: Tensor | None = None) -> None:
        """`shared`, (1,), is kept at the progress, for other processes."""
        self.run, self.hours, self.minutes, self.shared = run, hours, minutes, shared
        self.begun, self.clock = run.heard / 3600 / hours, time.monotonic()

    def progress(self) -> float:
        """0 to 1."""
        if self.minutes is None:
            done = self.run.heard / 3600 / self.hours
        else:
            done = self.begun + (1.0 - self.begun) * (time.monotonic() - self.clock) / 60 / self.minutes
        if self.shared is not None:
            self.shared.fill_(done)
        return done


def follow(run: Run, source: Iterator[Batch], until: float, schedule: Schedule, out: Path) -> None:
    """Train until `until` of the schedule is done; logs every 20 steps, saves every 2 minutes and when terminated."""
    saved = clock = time.monotonic()
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.set())
    seen: dict[str, list[float]] = {}
    for batch in source:
        progress = schedule.progress()
        if progress >= min(until, 1.0) or stopped.is_set():
            run.save(out / "state.pt")
            if stopped.is_set():
                raise SystemExit(0)
            return
        for name, value in run.step(batch, progress).items():
            seen.setdefault(name, []).append(value)
        now = time.monotonic()
        run.spent += now - clock
        clock = now
        if run.steps % 20 == 0:
            row = {"step": run.steps, "heard_hours": run.heard / 3600, "spent_minutes": run.spent / 60}
            with (out / "log.jsonl").open("a") as log:
                means = {name: sum(values) / len(values) for name, values in seen.items()}
                log.write(json.dumps({name: round(value, 4) for name, value in (row | means).items()}) + "\n")
            seen = {}
        if now - saved > 120:
            run.save(out / "state.pt")
            saved = now


if __name__ == "__main__":
    main()
