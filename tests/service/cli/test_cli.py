"""The wisp command, run as a user runs it: data on stdout, sentences on stderr, exit codes."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.cli.main import main
from service.cli.parser import SHARED_FLAGS
from service.settings import TABLE
from tests.conftest import ROOT
from tests.support import synthetic
from tests.support.serving import wav


@dataclass(frozen=True)
class Done:
    """How a command ended and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]
DOCUMENTED = ROOT / "docs" / "settings.md"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home") / "models"
    synthetic.save_synthetic(folder / "tiny_en")
    return folder


@pytest.fixture
def wisp(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `wisp` with these arguments in an empty folder; the only model installed is the synthetic one, as tiny_en."""
    for name in [name for name in os.environ if name.startswith(("WISP_", "WASMEDGE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, **variables: str) -> Done:
        defaults = {
            "WISP_MODELS_DIR": str(models),
            "WISP_TARGET": "cpu",
            "XDG_CACHE_HOME": str(models.parent / "cache"),
        }
        for name, value in (defaults | variables).items():
            monkeypatch.setenv(name, value)
        try:
            code = main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        return Done(code, *capfd.readouterr())

    return run


def one_sentence(stderr: str) -> str:
    """A failed command's message: one line by wisp, no traceback."""
    assert stderr.startswith("wisp: ") and stderr.endswith(".\n") and stderr.count("\n") == 1, stderr
    return stderr


def test_help_lists_the_commands_and_loads_nothing_heavy() -> None:
    code = "import sys; from service.cli.main import main\ntry: main(['--help'])\nfinally: print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert all(command in done.stdout for command in ("serve", "transcribe", "doctor"))
    assert not any(f"'{heavy}'" in done.stdout for heavy in ("numpy", "wasmtime", "starlette", "wgpu", "asyncio"))


def test_version_is_the_packages(wisp: Run) -> None:
    done = wisp("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("wisp 0.")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    "arguments", [("transcribe", "a.wav"), ("models", "list"), ("doctor",), ("completion", "bash")]
)
def test_a_full_disk_is_one_sentence(arguments: tuple[str, ...], models: Path, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(1.0))
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", "import sys; from service.cli.main import main; sys.exit(main())", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "WISP_MODELS_DIR": str(models), "WISP_TARGET": "cpu"},
        )
    assert (done.returncode, one_sentence(done.stderr)) == (1, "wisp: There is no space left to write the output.\n")


def test_every_setting_with_a_flag_is_a_flag_of_serve(wisp: Run) -> None:
    text = wisp("serve", "--help").stdout
    assert all(setting.flag in text for setting in TABLE)


def test_the_page_of_settings_lists_the_flags_of_every_command() -> None:
    page = " ".join(DOCUMENTED.read_text().split())
    (sentence,) = re.findall(r"`wisp transcribe`, `wisp listen` and `wisp doctor` take (.*?) as flags", page)
    flags = [setting.flag for setting in TABLE if setting.name in SHARED_FLAGS]
    assert sorted(re.findall(r"`(.*?)`", sentence)) == sorted(flags)


def test_transcribe_writes_the_words_and_nothing_else(wisp: Run, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(1.0))
    done = wisp("transcribe", "a.wav")
    assert (done.returncode, done.stdout, done.stderr) == (0, synthetic.SENTENCE + "\n", "")


def test_a_prompt_of_invalid_utf8_does_no_harm(wisp: Run, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(1.0))
    done = wisp("transcribe", "--prompt", os.fsdecode(b"caf\xe9"), "a.wav")
    assert (done.returncode, done.stdout, done.stderr) == (0, synthetic.SENTENCE + "\n", "")


def test_transcribe_continues_after_a_file_that_fails(wisp: Run, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(1.0))
    (tmp_path / "b.wav").write_bytes(b"no sound")
    (tmp_path / "empty").mkdir()
    done = wisp("transcribe", "--format", "json", "a.wav", "b.wav", "missing.wav", "empty", "no*.wav", "a.wav")
    assert done.returncode == 1
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == [synthetic.SENTENCE] * 2
    complaints = done.stderr.splitlines()
    assert [line.split(":")[1].strip() for line in complaints] == ["b.wav", "missing.wav", "empty", "no*.wav"]


def test_with_several_files_each_transcript_names_its_file(wisp: Run, tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(wav(1.0))
    done = wisp("transcribe", "a.wav", "b.wav")
    assert done.stdout == f"a.wav: {synthetic.SENTENCE}\nb.wav: {synthetic.SENTENCE}\n"
    for format in ("json", "verbose_json"):
        objects = [
            json.loads(line) for line in wisp("transcribe", "--format", format, "a.wav", "b.wav").stdout.splitlines()
        ]
        assert [(o["file"], o["text"]) for o in objects] == [(n, synthetic.SENTENCE) for n in ("a.wav", "b.wav")]
    assert "file" not in json.loads(wisp("transcribe", "--format", "json", "a.wav").stdout)


@pytest.mark.parametrize(
    ("format", "suffix", "start"),
    [
        ("text", ".txt", synthetic.SENTENCE),
        ("json", ".json", '{"text": '),
        ("verbose_json", ".json", '{"task": '),
        ("srt", ".srt", "1\n"),
        ("vtt", ".vtt", "WEBVTT\n"),
    ],
)
def test_a_folder_gets_one_file_for_each(wisp: Run, tmp_path: Path, format: str, suffix: str, start: str) -> None:
    for name in ("a.wav", "b.c.wav"):
        (tmp_path / name).write_bytes(wav(1.0))
    done = wisp("transcribe", "--format", format, "--output-dir", "out/here", "a.wav", "b.c.wav")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    written = sorted((tmp_path / "out" / "here").iterdir())
    assert [path.name for path in written] == ["a" + suffix, "b.c" + suffix]
    assert all(path.read_text().startswith(start) for path in written)


def test_a_folder_that_cannot_be_made_is_one_sentence(wisp: Run, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    done = wisp("transcribe", "--output-dir", "out", "a.wav")
    assert done.returncode == 1
    assert "out" in one_sentence(done.stderr)


def test_a_dash_reads_stdin(wisp: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(wav(1.0))))
    done = wisp("transcribe", "-")
    assert (done.returncode, done.stdout, done.stderr) == (0, synthetic.SENTENCE + "\n", "")


def test_words_can_be_timed_and_the_temperature_chosen(wisp: Run, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(1.0))
    timed = json.loads(wisp("transcribe", "--format", "verbose_json", "--word-timestamps", "a.wav").stdout)
    assert {"words", "segments"} <= set(timed)
    warmer = json.loads(wisp("transcribe", "--format", "verbose_json", "--temperature", "0.1", "a.wav").stdout)
    assert {segment["temperature"] for segment in warmer["segments"]} == {0.1}


@pytest.mark.parametrize(
    ("format", "start"),
    [
        ("verbose_json", '{"task": "transcribe"'),
        ("srt", "1\n00:00:00,000 --> "),
        ("vtt", "WEBVTT\n\n00:00:00.000 --> "),
    ],
)
def test_transcribe_speaks_every_format(wisp: Run, tmp_path: Path, format: str, start: str) -> None:
    (tmp_path / "a.wav").write_bytes(wav(1.0))
    assert wisp("transcribe", "--format", format, "a.wav").stdout.startswith(start)


def test_transcribe_takes_a_models_folder(wisp: Run, models: Path, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(1.0))
    done = wisp("transcribe", "--model", str(models / "tiny_en"), "a.wav", WISP_MODELS_DIR=str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (0, synthetic.SENTENCE + "\n")


def test_the_demos_preload_string_chooses_the_model(wisp: Run, models: Path, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(1.0))
    files = ":".join(str(models / "tiny_en" / name) for name in ("model.safetensors", "config.json", "tokenizer.json"))
    done = wisp("transcribe", "a.wav", WASMEDGE_WASINN_PRELOAD=f"default:Burn:CPU:{files}:en", WISP_MODELS_DIR="none")
    assert (done.returncode, done.stdout) == (0, synthetic.SENTENCE + "\n")
    done = wisp("transcribe", "a.wav", WASMEDGE_WASINN_PRELOAD="default:Burn")
    assert done.returncode == 1
    assert "WASMEDGE_WASINN_PRELOAD" in one_sentence(done.stderr)


@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("transcribe", "a.wav"), ("doctor",)])
def test_a_missing_model_is_one_sentence_and_exit_code_1(wisp: Run, command: tuple[str, ...]) -> None:
    done = wisp(*command, "--model", "nowhere")
    assert done.returncode == 1
    if command[0] == "doctor":
        assert "model      FAILED" in done.stdout
    else:
        assert "nowhere" in one_sentence(done.stderr)


def test_serve_refuses_a_broken_model_before_it_listens(wisp: Run, models: Path, tmp_path: Path) -> None:
    broken = synthetic.save_synthetic(tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    done = wisp("serve", "--port", "0", "--model", str(broken), "--log-level", "error")
    assert done.returncode == 1
    assert "broken" in one_sentence(done.stderr)


def test_a_port_that_is_taken_is_one_sentence_and_exit_code_1(wisp: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = wisp("serve", "--port", str(taken.getsockname()[1]), "--log-level", "error")
    assert done.returncode == 1
    assert "Address already in use" in done.stderr and "WISP_PORT=" in one_sentence(done.stderr)


def test_serve_says_where_it_listens_and_what_serves_and_drains_on_sigterm(models: Path, tmp_path: Path) -> None:
    code = "import sys; from service.cli.main import main; sys.exit(main())"
    arguments = ["serve", "--target", "cpu", "--model", str(models / "tiny_en"), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(models.parent / "cache")}
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
    ) as process:
        assert process.stderr is not None
        log = ""
        while "ready" not in log:
            line = process.stderr.readline()
            assert line, log
            log += line
        found = re.search(r"listening on (http://127\.0\.0\.1:\d+) \(loading the model\)\n", log)
        assert found and "model tiny_en on the cpu target. The CPU was requested." in log
        with urllib.request.urlopen(f"{found[1]}/readyz") as response:
            assert response.status == 200
        process.send_signal(signal.SIGTERM)
        log += process.communicate(timeout=120)[1]
    assert process.returncode in (0, -signal.SIGTERM)
    assert "Traceback" not in log
    assert not re.search("server process|application startup", log), "uvicorn's lines say nothing to a user"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("serve", "--port", "http"), "--port"),
        (("serve", "--target", "tpu"), "--target"),
        (("transcribe", "--language", "klingon", "a.wav"), "klingon"),
        (("transcribe", "--language", "de", "a.wav"), "German"),
        (("transcribe", "--format", "srt", "a.wav", "b.wav"), "--output-dir"),
        (("transcribe", "--format", "vtt", "a.wav", "b.wav"), "--output-dir"),
        (("transcribe", "--output-dir", "out", "a.wav", "b/a.mp3"), "a.txt"),
        (("transcribe", "--temperature", "2", "a.wav"), "--temperature"),
        (("transcribe", "--word-timestamps", "a.wav"), "verbose_json"),
        (("transcribe", "-", "-"), "stdin"),
    ],
)
def test_a_usage_error_is_exit_code_2(wisp: Run, arguments: tuple[str, ...], words: str) -> None:
    done = wisp(*arguments)
    assert done.returncode == 2
    assert words in one_sentence(done.stderr)


@pytest.mark.parametrize(
    "arguments", [(), ("sing",), ("transcribe",), ("serve", "--no-such-flag"), ("serve", "--api-keys", "keys")]
)
def test_an_unknown_command_is_argparses_usage_error(wisp: Run, arguments: tuple[str, ...]) -> None:
    done = wisp(*arguments)
    assert done.returncode == 2 and "usage: wisp" in done.stderr and done.stdout == ""


def test_a_missing_or_unknown_argument_is_reported_with_its_help(wisp: Run) -> None:
    assert all(command in wisp().stderr for command in ("serve the API", "transcribe files"))
    told = wisp("transcribe", "--no-such-flag", "a.wav").stderr
    assert "usage: wisp transcribe" in told and "--no-such-flag" in told


def test_ctrl_c_ends_a_long_transcription(models: Path, tmp_path: Path) -> None:
    (tmp_path / "short.wav").write_bytes(wav(1.0))
    (tmp_path / "long.wav").write_bytes(wav(1800.0, rate=8000))
    code = "import sys; from service.cli.main import main; sys.exit(main())"
    arguments = ["transcribe", "--target", "cpu", "--model", str(models / "tiny_en"), "short.wav", "long.wav"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(models.parent / "cache")}
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"short.wav: {synthetic.SENTENCE}\n"
        process.send_signal(signal.SIGINT)
        rest, complaints = process.communicate(timeout=120)
    assert (process.returncode, rest, complaints) == (130, "", "")


def test_the_cpu_path_loads_nothing_heavy_that_it_does_not_need(models: Path, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(1.0))
    code = (
        "import sys; from service.cli.main import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "ours = {'kernels', 'service', 'numpy', 'wasmtime'}\n"
        "loaded = {name.split('.')[0] for name in sys.modules if getattr(sys.modules[name], '__file__', None)}\n"
        "loaded = {n for n in loaded if not n.startswith('_')} - sys.stdlib_module_names - ours\n"
        "assert loaded <= {'soundfile', 'typing_extensions', 'threadpoolctl'}, loaded\n"  # the last for NumPy
        "assert not {'asyncio', 'zipfile', 'kernels.checkpoints.openai'} & set(sys.modules)"
    )
    arguments = ["transcribe", "--target", "cpu", "--model", str(models / "tiny_en"), str(tmp_path / "a.wav")]
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, check=True, timeout=120)


@pytest.mark.parametrize("said", [None, "3"])
def test_numpy_starts_no_threads_of_its_own(said: str | None) -> None:
    """Unless the user sets them: they would spin for a while, and Wisp divides its work itself."""
    code = (
        "import sys; from service.cli.main import main; main(['completion', 'bash'])\n"
        "assert 'numpy' not in sys.modules\n"
        "import numpy, os; print('\\n', os.environ['OPENBLAS_NUM_THREADS'], len(os.listdir('/proc/self/task')))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    environment |= {"PYTHONPATH": str(ROOT)} | ({} if said is None else {"OPENBLAS_NUM_THREADS": said})
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    variable, n_threads = done.stdout.splitlines()[-1].split()
    assert variable == (said or "1")
    assert said or n_threads == "1"
