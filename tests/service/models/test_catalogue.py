"""Which models there are, and which of them a name means."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from service.errors import ModelError
from service.models import sizes
from service.models.catalogue import Catalogue, Entry
from service.models.names import model_candidates
from service.models.packaged import packaged_folder
from service.models.store import Record
from service.settings import Settings
from tests.support import synthetic
from tests.support.small_whisper import DIMS


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without any model."""
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.save_synthetic(tmp_path_factory.mktemp("models") / "both", multilingual=True)


def catalogue_of(home: Path, **changes: Any) -> Catalogue:
    settings = Settings(models_dir=str(home / "models"), **changes)
    spec = model_candidates(settings)[0]
    return Catalogue(settings, lambda: spec)


def cached(home: Path, repo: str, folder: Path) -> Path:
    """A model in the hub's cache."""
    snapshot = home / ".cache/huggingface/hub" / f"models--{repo.replace('/', '--')}" / "snapshots" / ("5a" * 20)
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(folder, snapshot)
    return snapshot


def names(catalogue: Catalogue) -> list[str]:
    return [entry.name for entry in catalogue.entries()]


def found(catalogue: Catalogue, name: str) -> Entry:
    entry = catalogue.find(name)
    assert entry is not None, name
    return entry


def test_all_that_can_be_found_is_listed_the_default_first(home: Path, folder: Path, both: Path) -> None:
    shutil.copytree(both, home / "models" / "base")
    cached(home, "openai/whisper-small", both)
    catalogue = catalogue_of(home, model=str(folder))
    first, *others = names(catalogue)
    assert first == "synthetic" and others[0] == "base"
    assert [name for name in others if name not in ("tiny_en",)] == ["base", "small", "embedded"]
    assert ("tiny_en" in others) == (packaged_folder() is not None)
    sources = {entry.name: (entry.source, entry.repo) for entry in catalogue.entries()}
    assert sources["base"] == ("models folder", "")
    assert sources["small"] == ("Hugging Face cache", "openai/whisper-small")


@pytest.mark.parametrize(
    "spelling",
    [
        "small.en",
        "small_en",
        "SMALL.en",
        "whisper-small.en",
        "openai/whisper-small.en",
        "Systran/faster-whisper-small.en",
    ],
)
def test_a_name_means_its_model_in_any_spelling(home: Path, folder: Path, spelling: str) -> None:
    shutil.copytree(folder, home / "models" / "small_en")
    assert found(catalogue_of(home), spelling).name == "small_en"


def test_two_of_one_name_go_by_their_repositories(home: Path, folder: Path) -> None:
    cached(home, "openai/whisper-small.en", folder)
    cached(home, "Systran/faster-whisper-small.en", folder)
    catalogue = catalogue_of(home)
    assert {"small_en", "openai/whisper-small.en"} <= set(names(catalogue)), "in the order of the cache's folders"
    assert found(catalogue, "small.en").repo == "Systran/faster-whisper-small.en"
    for repo in ("openai/whisper-small.en", "Systran/faster-whisper-small.en"):
        assert found(catalogue, repo.lower()).repo == repo


def test_the_settings_name_several(home: Path, folder: Path, both: Path) -> None:
    catalogue = catalogue_of(home, model=f"{folder}, {both}")
    assert names(catalogue)[:2] == ["synthetic", "both"]
    with pytest.raises(ModelError, match="nothing"):
        catalogue_of(home, model=f"{folder},./nothing").check_settings()


def test_a_named_model_that_has_gone_hides_no_other(home: Path, folder: Path, both: Path) -> None:
    shutil.copytree(both, home / "models" / "base")
    catalogue = catalogue_of(home, model=f"{folder},base")
    catalogue.check_settings()
    assert catalogue.is_named(found(catalogue, "base")) and not catalogue.is_named(found(catalogue, "embedded"))
    shutil.rmtree(home / "models" / "base")
    shutil.copytree(both, home / "models" / "small")
    assert "small" in names(catalogue) and "base" not in names(catalogue)
    with pytest.raises(ModelError, match="base"):
        catalogue.check_settings()


def test_every_preload_string_is_one(home: Path, folder: Path, both: Path) -> None:
    preload = f"default:Burn:CPU:{folder / 'model.safetensors'} Other:Burn:CPU:{both / 'model.safetensors'}"
    catalogue = catalogue_of(home, preload=preload)
    assert names(catalogue)[:2] == ["default", "Other"]
    assert found(catalogue, "other").spec.target == "cpu"


def test_a_path_with_a_comma_is_one_model(home: Path, folder: Path) -> None:
    path = shutil.copytree(folder, home / "one, two")
    assert names(catalogue_of(home, model=str(path)))[0] == "one,_two" or Settings(model=str(path)).models() == [
        str(path)
    ]


def test_what_comes_and_goes_is_noticed(home: Path, folder: Path) -> None:
    catalogue = catalogue_of(home)
    assert catalogue.find("late") is None
    shutil.copytree(folder, home / "models" / "late")
    assert found(catalogue, "late").name == "late"
    shutil.rmtree(home / "models" / "late")
    assert catalogue.find("late") is None
    cached(home, "someone/whisper-late", folder)
    assert found(catalogue, "late").repo == "someone/whisper-late"


def test_the_default_is_found_without_a_look_at_any_folder(
    home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = catalogue_of(home, model=str(folder))

    def entries(self: Catalogue) -> None:
        raise AssertionError("folders were looked into")

    monkeypatch.setattr(Catalogue, "entries", entries)
    assert found(catalogue, "synthetic").spec.weights == folder


def test_what_is_known_of_a_model(home: Path, folder: Path, both: Path) -> None:
    catalogue = catalogue_of(home, model=f"{folder},{both}")
    one, other = catalogue.entries()[:2]
    assert (one.languages(), other.languages()) == (("en",), ("de", "en"))
    assert one.n_bytes() == sum(path.stat().st_size for path in folder.iterdir())
    assert one.licence() is None


def test_the_licence_is_the_records_or_the_cards(home: Path, folder: Path) -> None:
    pulled = shutil.copytree(folder, home / "models" / "base")
    Record("https://hub", "openai/whisper-base", "5a" * 20, "apache-2.0", "2026-01-01", {}).write(pulled)
    snapshot = cached(home, "openai/whisper-small", folder)
    (snapshot / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\nlicense: none of this\n")
    catalogue = catalogue_of(home)
    assert found(catalogue, "base").licence() == "apache-2.0" and found(catalogue, "small").licence() == "mit"
    assert found(catalogue, "openai/whisper-base").name == "base"
    (snapshot / "README.md").write_text("# Whisper\n---\nlicense: mit\n")
    assert found(catalogue, "small").licence() is None


def test_languages_are_read_again_once_the_files_have_changed(home: Path, folder: Path, both: Path) -> None:
    path = shutil.copytree(folder, home / "models" / "changing")
    catalogue = catalogue_of(home)
    assert found(catalogue, "changing").languages() == ("en",)
    before = found(catalogue, "changing").state()
    for file in both.iterdir():
        shutil.copy(file, path / file.name)
    assert found(catalogue, "changing").state() != before
    assert found(catalogue, "changing").languages() == ("de", "en")
    (path / "config.json").write_text("{}")
    with pytest.raises(ModelError):
        found(catalogue, "changing").languages()


def test_a_folder_that_cannot_be_read_leaves_the_default(
    home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = catalogue_of(home, model=str(folder))

    def refuse(models_dir: Path) -> None:
        raise PermissionError(13, "Permission denied", str(models_dir))

    monkeypatch.setattr("service.models.catalogue.every_place", refuse)
    assert names(catalogue) == ["synthetic"]


def test_the_estimate_is_above_the_weights() -> None:
    one, two = sizes.loaded_bytes(DIMS, 1), sizes.loaded_bytes(DIMS, 2)
    assert 0 < one < two


def test_a_containers_limit_counts_where_it_is_lower(tmp_path: Path) -> None:
    machine = sizes.machine_bytes(tmp_path)
    assert machine > 2**28
    (tmp_path / "memory.max").write_text("max\n")
    assert sizes.machine_bytes(tmp_path) == machine
    (tmp_path / "memory.max").write_text("268435456\n")
    assert sizes.machine_bytes(tmp_path) == 2**28
