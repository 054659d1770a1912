"""The guest on the CPU target against openai/whisper's output: some of each kind; `make parity TARGET=cpu`: all."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.reference import KINDS, Whisper, cases, differences
from service.guest.runner import Guest
from service.models.loaded import read_model
from service.models.names import ModelSpec
from tests.conftest import ROOT
from tests.support.loading import loaded

# Of each file in `../shared/expected`, these. Long: 59 s, with and without the last window's text as the next's prompt.
# Ladder: one that ends at temperature 0 and one that climbs one step. Quiet: silence and noise.
TAKEN = {
    "decode-timestamps": slice(0, None, 8),
    "decode-no-timestamps": slice(4, None, 8),
    "decode-beam5": slice(0, None, 5),
    "decode-prompt": slice(0, None, 3),
    "transcribe-quiet": slice(0, 2),
    "transcribe-ladder": slice(1, 3),
    "transcribe-words": slice(0, None, 4),
    "transcribe-long": slice(0, 2),
}


@pytest.fixture(scope="module")
def whisper(shared: Path) -> Iterator[Whisper]:
    guest = Guest(ROOT / "assets" / "guest.wasm")
    model = loaded(read_model(ModelSpec("tiny_en", shared / "models" / "tiny_en"), "cpu"))
    yield Whisper(guest, model)
    model.close()
    guest.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_is_the_references(whisper: Whisper, shared: Path, kind: str) -> None:
    taken = list(cases(shared, (kind,)))[TAKEN[kind]]
    assert len(taken) >= 2
    wrong = {
        case.name: found for case in taken if (found := differences(case, whisper.answer(case, case.samples(shared))))
    }
    assert not wrong
