"""tests/rules.json, the cases that every implementation of the decoding rules takes, for the tests in Python."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.rules import Rules
from tests.conftest import ROOT

_TABLE = json.loads((ROOT / "tests" / "rules.json").read_text())
N_VOCAB, EOT, PROMPT = (int(_TABLE[name]) for name in ("n_vocab", "eot", "prompt"))


@dataclass(frozen=True)
class RuleCase:
    """After PROMPT and `sampled`, `logits` (n_vocab,) leave the rules to choose `chosen`; nothing if None."""

    tensor: NDArray[np.int32]  # the decoder's input 3
    sampled: list[int]
    logits: NDArray[np.float32]
    chosen: int | None

    @property
    def rules(self) -> Rules:
        return Rules.parse(self.tensor, N_VOCAB)


def _case(entry: dict[str, Any]) -> RuleCase:
    suppress, begin_suppress = entry.get("suppress", []), entry.get("begin_suppress", [])
    begin = _TABLE["timestamp_begin"] if entry.get("timestamps", True) else -1
    head = [1, 1, EOT, begin, _TABLE["no_timestamps"], entry.get("limit", -1), len(suppress), len(begin_suppress)]
    logits = np.full(N_VOCAB, -20, np.float32)
    for token, logit in entry["logits"].items():
        logits[int(token)] = logit
    return RuleCase(np.array([*head, *suppress, *begin_suppress], np.int32), entry["sampled"], logits, entry["chosen"])


each_rule_case = pytest.mark.parametrize(
    "case", [pytest.param(_case(entry), id=entry["rule"]) for entry in _TABLE["cases"]]
)
