"""The measurement of how many workers: requests that come together, and a table of ratios."""

from pathlib import Path

import pytest

from bench.workers import main
from tests.support import synthetic
from tests.support.serving import wav


def test_it_compares_each_number_of_workers_with_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("speech.wav").write_bytes(wav(1.0))
    model = str(synthetic.save_synthetic(tmp_path / "synthetic"))
    assert main(["speech.wav", "--model", model, "--workers", "1", "3", "--requests", "2", "--rounds", "1"]) == 0
    _, _, first, second = capsys.readouterr().out.splitlines()
    assert first == "| 1 | 1.00 | 1.00 | 1.00 | 1.00 |"
    assert second.startswith("| 3 | ") and all(float(number) > 0 for number in second.split("|")[2:6])
