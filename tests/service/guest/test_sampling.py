"""Above temperature 0 through the guest itself: the tokens of a few hundred seeds have the right distribution."""

from collections import Counter
from collections.abc import Iterator, Mapping
from math import exp
from typing import Any

import pytest

from service.guest.runner import Guest
from tests.support.scripted import EOT, NO_SPEECH, WASM, Script, T, argument, of, run

SEEDS = range(400)
# Of draws from the right distribution one in a thousand is above these, by degrees of freedom. The seeds are fixed.
CHI_SQUARE = {1: 10.83, 2: 13.82, 3: 16.27}
FAR = 40.0  # a logit that makes tokens with logit 0 negligible

Logits = dict[int, float]


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    guest = Guest(WASM)
    yield guest
    guest.close()


def first_tokens(guest: Guest, logits: Mapping[tuple[int, ...], Logits], prompt: int, **options: Any) -> Counter[int]:
    """The first token said by each seed, where after the sampled ones come these logits, and the end after others."""
    script = Script(lambda window, sequence: logits.get(tuple(sequence[prompt:]), {EOT: FAR}))
    found: Counter[int] = Counter()
    for seed in SEEDS:
        events = run(guest, script, argument(seed=seed, **options), n_frames=100)
        found[of(events, "window")[0]["tokens"][0]] += 1
    return found


def chi_square(found: Counter[int], expected: Mapping[int, float]) -> float:
    """Pearson's, against probabilities; tokens that may not come are an error."""
    assert set(found) <= set(expected)
    n = found.total()
    return sum((found[token] - n * p) ** 2 / (n * p) for token, p in expected.items())


def softmax(logits: Logits, temperature: float) -> dict[int, float]:
    weights = {token: exp((logit - FAR) / temperature) for token, logit in logits.items()}
    return {token: weight / sum(weights.values()) for token, weight in weights.items()}


TEXT = {5: FAR + 1.0, 6: FAR + 0.4, 7: FAR, 8: FAR - 0.6}
TIMES = {T: FAR + 1.0, T + 10: FAR, T + 50: FAR - 0.6}
# Likelier ones, each of which a rule takes out: suppressed, a space alone, the end, special; later than 1.0 s, text.
NO_TEXT = {1: FAR + 3, 0: FAR + 3, EOT: FAR + 3, NO_SPEECH: FAR + 3}
NO_TIME = {T + 51: FAR + 3, 5: FAR + 3}


@pytest.mark.parametrize("temperature", [0.4, 1.0])
@pytest.mark.parametrize(
    ("possible", "ruled_out", "options"),
    [(TEXT, NO_TEXT, {"without_timestamps": True}), (TIMES, NO_TIME, {})],
    ids=["text", "timestamps"],
)
def test_the_first_token_follows_the_filtered_and_tempered_softmax(
    guest: Guest, possible: Logits, ruled_out: Logits, options: dict[str, Any], temperature: float
) -> None:
    found = first_tokens(
        guest, {(): possible | ruled_out}, prompt=1 + len(options), temperature=temperature, sample_len=1, **options
    )
    bound = CHI_SQUARE[len(possible) - 1]
    assert chi_square(found, softmax(possible, temperature)) < bound
    # The same draws are not those of a temperature nearby.
    assert chi_square(found, softmax(possible, 2 * temperature)) > bound
