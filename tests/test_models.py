"""Which model is served and where: preload strings, lookup, targets; a model that loads, answers and closes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kernels.device import AdapterInfo, list_adapters
from service import model_files
from service.errors import DeviceUnavailable, ModelError
from service.model_files import canonical_name
from service.models import (
    ModelSpec,
    _target_among,
    find_model,
    load_model,
    may_have_hardware,
    parse_preload,
    read_model,
)
from tests.conftest import ROOT
from tests.synthetic import SENTENCE, save_synthetic

DEMO = "default:Burn:GPU:/tiny_en.mpk:/tiny_en.cfg:/tokenizer.json:en"


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_synthetic(tmp_path_factory.mktemp("models") / "synthetic")


@pytest.fixture
def install(tmp_path: Path, synthetic: Path) -> Callable[[str], Path]:
    """Puts the synthetic model into tmp_path under a name."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(synthetic, tmp_path / name))

    return copy


def test_the_demos_own_preload_string() -> None:
    assert parse_preload(DEMO) == [
        ModelSpec("default", Path("/tiny_en.mpk"), Path("/tiny_en.cfg"), Path("/tokenizer.json"), "en", "gpu")
    ]


@pytest.mark.parametrize(
    ("target", "kind"), [("GPU", "gpu"), ("gpu", "gpu"), ("Gpu", "gpu"), ("CPU", "cpu"), ("AUTO", "cpu"), ("", "cpu")]
)
def test_preload_targets(target: str, kind: str) -> None:
    assert parse_preload(f"a:bUrN:{target}:w.mpk")[0].target == kind


def test_several_models_are_preloaded_and_parts_may_be_left_out() -> None:
    text = "  one:ggml:cpu:a.bin\ntwo:Whisper:CPU:b.bin::t.json:German three:autodetect:gpu:/models/folder "
    assert parse_preload(text) == [
        ModelSpec("one", Path("a.bin"), target="cpu"),
        ModelSpec("two", Path("b.bin"), tokenizer=Path("t.json"), language="de", target="cpu"),
        ModelSpec("three", Path("/models/folder"), target="gpu"),
    ]
    assert parse_preload("") == parse_preload(" \n") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("default", "'default' is not of the form NAME:ENCODING:TARGET:WEIGHTS"),
        ("a:burn:cpu", "'a:burn:cpu' is not of the form"),
        ("a:burn:cpu:", "is not of the form"),
        (":burn:cpu:w", "is not of the form"),
        ("a:burn:cpu:w:c:t:en:more", "is not of the form"),
        ("a:onnx:cpu:w", "encoding 'onnx' of 'a' is not one of burn, whisper"),
        ("a:burn:cpu:w:c:t:klingon", "'klingon' of 'a' is no language"),
        ("a:burn:cpu:w a:burn:cpu:v", "name 'a' is given twice"),
    ],
)
def test_a_bad_preload_string_is_one_clear_sentence(text: str, said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        parse_preload(text)
    assert str(caught.value).startswith("WASMEDGE_WASINN_PRELOAD: ") and str(caught.value).count(". ") == 0


@pytest.mark.parametrize(
    "name", ["tiny_en", "tiny.en", "tiny-en", "whisper-tiny.en", "openai/whisper-tiny.en", "Whisper_Tiny.EN"]
)
def test_one_model_has_many_spellings(install: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    folder = install("whisper-tiny.en")
    assert find_model(name, tmp_path) == ModelSpec("tiny_en", folder)


def test_other_names_stay_apart() -> None:
    assert canonical_name("openai/whisper-large-v3") == "large_v3"
    assert len({canonical_name(name) for name in ("tiny", "tiny.en", "base", "small.en", "whisper")}) == 5


def test_a_folder_or_a_file_may_be_named(install: Callable[[str], Path], tmp_path: Path) -> None:
    folder = install("my-own")
    nothing_installed = tmp_path / "none"
    assert find_model(str(folder), nothing_installed) == ModelSpec("my_own", folder)
    weights = folder / "model.safetensors"
    assert find_model(str(weights), nothing_installed) == ModelSpec("my_own", weights)
    other = weights.rename(folder / "tiny_en.mpk.gz")
    assert find_model(str(other), nothing_installed) == ModelSpec("tiny_en", other)
    assert find_model(str(folder), nothing_installed) == ModelSpec("my_own", other)


def test_without_a_name_tiny_en_goes_before_the_embedded_model(
    install: Callable[[str], Path], tmp_path: Path, synthetic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "EMBEDDED", synthetic)
    assert find_model("", tmp_path / "absent") == ModelSpec("embedded", synthetic)
    install("base.en")
    assert find_model("", tmp_path) == ModelSpec("embedded", synthetic)
    folder = install("tiny.en")
    assert find_model("", tmp_path) == ModelSpec("tiny_en", folder)
    assert find_model("embedded", tmp_path) == ModelSpec("embedded", synthetic)


def test_a_model_that_is_not_there_is_told_what_is(install: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"There is no model 'small\.en'.*nothing is installed there.*small_en"):
        find_model("small.en", tmp_path)
    install("tiny.en")
    with pytest.raises(ModelError, match="it has tiny_en"):
        find_model("small.en", tmp_path)


@pytest.mark.parametrize("named", ["/nope", "./nope", "some/folder", "nope.mpk", "~/nope-at-all"])
def test_a_path_where_nothing_is_says_nothing_of_installing(named: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is nothing at ") as caught:
        find_model(named, tmp_path)
    assert named in str(caught.value) and "install" not in str(caught.value)


def test_files_that_are_no_models_are_not_to_be_fetched_again(synthetic: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("milk, bread")
    burn, burns_config = tmp_path / "a.mpk", tmp_path / "a.cfg"
    for path in (burn, burns_config):
        path.touch()
    weights = synthetic / "model.safetensors"
    for spec, said in (
        (ModelSpec("a", notes), "no weights file"),
        (ModelSpec("a", tmp_path / "nope.mpk"), "its weights should be at"),
        (ModelSpec("a", weights, tmp_path / "nope.json"), "its configuration should be at"),
        (ModelSpec("a", weights, None, tmp_path / "nope.json"), "its tokenizer should be at"),
        (ModelSpec("a", weights, burns_config), "a .cfg goes with .mpk"),
        (ModelSpec("a", burn, synthetic / "config.json"), "a config.json with .safetensors"),
    ):
        with pytest.raises(ModelError) as caught:
            read_model(spec, "cpu")
        assert said in str(caught.value) and "etch" not in str(caught.value)


def test_a_folder_without_weights_or_with_too_many(tmp_path: Path) -> None:
    (tmp_path / "tiny.en").mkdir()
    with pytest.raises(ModelError, match=r"tiny\.en has no weights file: it needs a model\.safetensors"):
        find_model("tiny.en", tmp_path)
    for name in ("a.mpk", "b.pt"):
        (tmp_path / "tiny.en" / name).touch()
    with pytest.raises(ModelError, match=r"several weights files \(a\.mpk, b\.pt\)"):
        find_model("", tmp_path)


@pytest.mark.parametrize("named", ["~no-such-user/model", "a" * 300])
def test_a_path_that_cannot_be_one_is_a_model_that_is_not_there(named: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=named[:20]):
        find_model(named, tmp_path)


def test_a_folder_of_models_that_cannot_be_looked_into_is_told(tmp_path: Path) -> None:
    unreadable = tmp_path / ("a" * 300)
    with pytest.raises(ModelError, match="--models-dir"):
        find_model("", unreadable)


def test_an_installation_without_the_embedded_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "EMBEDDED", tmp_path / "absent")
    with pytest.raises(ModelError, match="no embedded model"):
        find_model("", tmp_path)


def adapter(kind: str) -> AdapterInfo:
    return AdapterInfo(f"A {kind} one", "", kind, "Vulkan", "", frozenset(), {})


@pytest.mark.parametrize(
    ("asked", "kinds", "chosen", "said"),
    [
        ("auto", ("discrete", "software"), "gpu", "hardware adapter: A discrete one"),
        ("auto", ("integrated",), "gpu", "hardware adapter: A integrated one"),
        ("auto", ("other", "software"), "gpu", "hardware adapter: A other one"),
        ("auto", ("software",), "cpu", "is software"),
        ("auto", (), "cpu", "No WebGPU adapter was found"),
        ("gpu", ("software",), "gpu", "asked for; the best adapter is A software one"),
        ("gpu", ("discrete", "software"), "gpu", "A discrete one"),
    ],
)
def test_targets(asked: str, kinds: tuple[str, ...], chosen: str, said: str) -> None:
    target = _target_among(asked, [adapter(kind) for kind in kinds], "")
    assert target.name == chosen and said in target.reason
    assert target.is_software == (chosen == "gpu" and kinds[0] == "software")


def test_a_software_adapter_that_was_asked_for_is_warned_of(synthetic: Path, caplog: pytest.LogCaptureFixture) -> None:
    if not any(found.is_software for found in list_adapters()[:1]):
        pytest.skip("the best adapter of this machine is not software")
    read_model(ModelSpec("synthetic", synthetic), "gpu").make_ready().close()
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "--target cpu is faster" in warning


def run_without_adapters(code: str, **environment: str) -> str:
    """What a fresh Python prints, on a machine whose Vulkan loader finds no driver."""
    environment |= {"VK_DRIVER_FILES": "/nonexistent", "VK_ICD_FILENAMES": "/nonexistent"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_an_adapter_auto_takes_the_cpu_and_gpu_fails_clearly() -> None:
    answer = run_without_adapters(
        "from service.models import choose_target; from service.errors import DeviceUnavailable\n"
        "print(choose_target('auto'))\n"
        "try: choose_target('gpu')\n"
        "except DeviceUnavailable as error: print(error)"
    )
    auto, gpu = answer.splitlines()
    assert "name='cpu'" in auto
    assert gpu.startswith("The target gpu was asked for, but no WebGPU adapter was found") and "mesa" in gpu


@pytest.mark.skipif(may_have_hardware(), reason="this machine may have a GPU")
def test_a_machine_without_a_graphics_device_is_not_asked_for_adapters() -> None:
    answer = run_without_adapters(
        "import sys; from service.models import choose_target\n"
        "print(choose_target('auto').reason, 'wgpu' in sys.modules)"
    )
    assert answer == "This machine has no graphics device (there is no node of one under /dev). False"


def test_the_cpu_target_never_loads_wgpu(synthetic: Path) -> None:
    answer = run_without_adapters(
        "import sys; from pathlib import Path; from service.models import *\n"
        f"model = load_model(find_model({str(synthetic)!r}, Path('.')), 'cpu')\n"
        "print(model.target.name, 'wgpu' in sys.modules)"
    )
    assert answer == "cpu False"


def test_a_gpu_that_does_not_open_is_replaced_only_where_nobody_asked_for_it(synthetic: Path) -> None:
    answer = run_without_adapters(
        "import dataclasses; from pathlib import Path; from service.errors import DeviceUnavailable\n"
        "from service.models import *\n"
        f"read = read_model(find_model({str(synthetic)!r}, Path('.')), 'auto')\n"
        "read = dataclasses.replace(read, target=Target('gpu', 'There was one a moment ago.'))\n"
        "print(read.make_ready().target)\n"
        "try: dataclasses.replace(read, may_fall_back=False).make_ready()\n"
        "except DeviceUnavailable as error: print(error)"
    )
    replaced, refused = answer.splitlines()
    assert "name='cpu'" in replaced and "There was one a moment ago. But: " in replaced
    assert refused.startswith("The model cannot run on the GPU: ") and "--target cpu" in refused


def test_an_unknown_target_is_refused(synthetic: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="'tpu' is not one of auto, gpu, cpu"):
        load_model(ModelSpec("synthetic", synthetic), "tpu")


def test_a_model_loads_answers_and_closes(synthetic: Path) -> None:
    model = load_model(ModelSpec("synthetic", synthetic), "cpu")
    assert (model.name, model.target.name, model.language) == ("synthetic", "cpu", None)
    assert (model.dims.n_mels, model.dims.n_audio_ctx) == (80, 150)
    assert set(model.graphs) == {"synthetic/encoder", "synthetic/decoder", "synthetic/tokenizer"}
    encoder = model.graphs["synthetic/encoder"].init_execution_context({})
    encoder.set_input(0, np.zeros((1, model.dims.n_mels, 2 * model.dims.n_audio_ctx), np.float32))
    encoder.compute()
    assert encoder.get_output(0).shape == (1, model.dims.n_audio_ctx, model.dims.n_audio_state)
    model.add_speech_graph(lambda samples: SENTENCE)
    speech = model.graphs["synthetic"].init_execution_context({})
    speech.set_input(0, np.zeros((1, 160), np.float32))
    speech.compute()
    assert speech.get_output(0).tobytes().decode() == SENTENCE
    encoder.close()
    model.close()
    model.close()


def test_the_preloads_target_counts_where_the_settings_name_none(synthetic: Path) -> None:
    spec = parse_preload(f"default:autodetect:CPU:{synthetic}:::en")[0]
    model = load_model(spec, "auto")
    assert (model.name, model.target.name, model.language) == ("default", "cpu", "en")
    model.close()


def test_a_target_that_is_asked_for_goes_before_the_preloads(synthetic: Path) -> None:
    spec = parse_preload(f"default:autodetect:GPU:{synthetic}")[0]
    assert read_model(spec, "cpu").target.name == "cpu"


def test_a_preload_of_a_language_the_model_does_not_know_is_refused_at_the_start(synthetic: Path) -> None:
    with pytest.raises(ModelError, match=r"'default' does not know German \('de'\)"):
        read_model(parse_preload(f"default:autodetect:CPU:{synthetic}:::de")[0])


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_missing_or_broken_file_is_named(install: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    folder = install("tiny.en")
    spec = find_model("tiny.en", tmp_path)
    content = (folder / name).read_bytes()
    for broken in (content[: len(content) // 2], b""):
        (folder / name).write_bytes(broken)
        with pytest.raises(ModelError, match=name.replace(".", r"\.")):
            load_model(spec, "cpu")
    (folder / name).unlink()
    with pytest.raises(ModelError):
        load_model(spec, "cpu")


def test_another_models_tokenizer_is_refused(install: Callable[[str], Path], shared: Path) -> None:
    folder = install("own")
    with pytest.raises(ModelError, match="another model's"):
        load_model(ModelSpec("own", folder, tokenizer=shared / "models/tiny_en/tokenizer.json"), "cpu")
