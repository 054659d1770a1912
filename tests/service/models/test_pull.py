"""Models from a hub: fetched whole through every fault that a network has, or not at all."""

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.errors import HubError
from service.models import hub as hub_module
from service.models.hub import Hub
from service.models.names import find_model
from service.models.places import installed_models
from service.models.pull import Pull
from service.models.store import Record, damage, remove, unfinished_folder
from tests.support.fake_hub import FakeHub, fake_hub
from tests.support.synthetic import save_synthetic

REPO = "openai/whisper-tiny.en"
WEIGHTS = "model.safetensors"
FILES = {"config.json", "generation_config.json", "tokenizer.json", WEIGHTS}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(hub_module, "FIRST_PAUSE_S", 0.0)
    with fake_hub() as hub:
        hub.add(REPO, save_synthetic(tmp_path / "source"))
        hub.repos[REPO] |= {"README.md": b"# Whisper", "pytorch_model.bin": b"x" * 20_000}
        yield hub


class Counted:
    """What a progress bar would show."""

    def __init__(self) -> None:
        self.n_bytes = 0

    def __call__(self, n_bytes: int) -> None:
        self.n_bytes += n_bytes


def pull(hub: FakeHub, models: Path, repo: str = REPO, token: str = "") -> tuple[bool, int]:
    """(whether anything was fetched, the bytes that a bar would show)."""
    counted = Counted()
    with Hub(hub.url, token) as client:
        wanted = Pull(client, models, repo)
        fetched = wanted.fetch(counted)
        assert counted.n_bytes == wanted.n_bytes, "a bar would not end at its end"
    return fetched, counted.n_bytes


def refused(hub: FakeHub, models: Path, repo: str = REPO, token: str = "") -> str:
    """Why a model was not fetched; it is not there then."""
    with pytest.raises(HubError) as raised:
        pull(hub, models, repo, token)
    assert installed_models(models) == {}
    message = str(raised.value)
    assert message.endswith(".") and "\n" not in message
    return message


def test_a_branch_may_have_any_name(hub: FakeHub) -> None:
    with Hub(hub.url) as client, pytest.raises(HubError, match="no such revision"):
        client.describe(REPO, "refs/pr/1?#")
    assert hub.asked[-1][0] == f"/api/models/{REPO}/revision/refs%2Fpr%2F1%3F%23"


def test_a_model_is_fetched_and_found(hub: FakeHub, tmp_path: Path) -> None:
    models = tmp_path / "models"
    assert pull(hub, models)[0]
    assert find_model("tiny.en", models).weights == models / "tiny_en"
    assert {path.name for path in (models / "tiny_en").iterdir()} == FILES | {"wisp.json"}
    assert (models / "tiny_en" / WEIGHTS).read_bytes() == hub.repos[REPO][WEIGHTS]
    record = Record.read(models / "tiny_en")
    assert record is not None and (record.repo, record.commit, record.licence) == (REPO, hub.commit, "apache-2.0")
    assert set(record.sums) == FILES and damage(models / "tiny_en", record) == []
    assert list(models.iterdir()) == [models / "tiny_en"]


def test_a_model_that_is_there_is_not_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    pull(hub, tmp_path / "models")
    hub.asked.clear()
    assert not pull(hub, tmp_path / "models")[0]
    assert set(hub.downloads()) <= {"config.json"}


def test_only_the_files_of_a_new_commit_that_changed_are_fetched(hub: FakeHub, tmp_path: Path) -> None:
    pull(hub, tmp_path / "models")
    hub.asked.clear()
    hub.commit, hub.repos[REPO]["generation_config.json"] = "6b" * 20, b'{"is_multilingual": true}'
    assert pull(hub, tmp_path / "models")[0]
    assert WEIGHTS not in hub.downloads()
    assert (tmp_path / "models" / "tiny_en" / "generation_config.json").read_bytes() == b'{"is_multilingual": true}'


def test_a_damaged_file_is_found_and_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "tiny_en"
    pull(hub, tmp_path / "models")
    with (folder / WEIGHTS).open("r+b") as file:
        file.seek(5000)
        file.write(b"damage")
    (folder / "tokenizer.json").unlink()
    record = Record.read(folder)
    assert record is not None
    assert [phrase.split()[0] for phrase in damage(folder, record)] == ["tokenizer.json", WEIGHTS]
    assert pull(hub, tmp_path / "models")[0]
    assert damage(folder, record) == []


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: FakeHub, tmp_path: Path) -> None:
    hub.cuts = [1000, 50_000, 3]
    pull(hub, tmp_path / "models")
    ranges = [wanted for path, wanted, _ in hub.asked if path.endswith(WEIGHTS) and path.startswith("/cdn/")]
    assert ranges == [None, "bytes=1000-", "bytes=51000-", "bytes=51003-"]


def test_a_later_command_goes_on_from_what_an_earlier_one_left(hub: FakeHub, tmp_path: Path) -> None:
    hub.cuts = [40_000, *[0] * 4]
    assert "rerun the command to resume" in refused(hub, tmp_path / "models")
    hub.asked.clear()
    pull(hub, tmp_path / "models")
    ranges = [wanted for path, wanted, _ in hub.asked if path.endswith(WEIGHTS) and path.startswith("/cdn/")]
    assert ranges == ["bytes=40000-"] and "tokenizer.json" not in hub.downloads()


def test_a_hub_without_ranges_sends_it_whole(hub: FakeHub, tmp_path: Path) -> None:
    hub.cuts, hub.ignores_ranges = [1000], True
    pull(hub, tmp_path / "models")
    assert (tmp_path / "models" / "tiny_en" / WEIGHTS).read_bytes() == hub.repos[REPO][WEIGHTS]


def test_what_an_earlier_command_left_damaged_is_fetched_whole(hub: FakeHub, tmp_path: Path) -> None:
    hub.cuts = [40_000, *[0] * 4]
    refused(hub, tmp_path / "models")
    (part,) = unfinished_folder(tmp_path / "models" / "tiny_en").glob("*.part")
    part.write_bytes(b"?" * 40_000)
    pull(hub, tmp_path / "models")


def test_a_file_with_another_sum_is_not_installed(hub: FakeHub, tmp_path: Path) -> None:
    for name in (WEIGHTS, "tokenizer.json"):  # of the one the hub tells a SHA-256, of the other Git's id
        hub.wrong = {name: hub.repos[REPO][name][:-1] + b"?"}
        message = refused(hub, tmp_path / name)
        assert name in message and "SHA-256" in message
        assert not list((tmp_path / name).rglob("*.part"))


def test_more_than_was_announced_is_not_read(hub: FakeHub, tmp_path: Path) -> None:
    hub.wrong = {WEIGHTS: hub.repos[REPO][WEIGHTS] * 2}
    assert "longer than" in refused(hub, tmp_path / "models")


def test_a_disk_without_room_is_told_before_anything_is_fetched(hub: FakeHub, tmp_path: Path) -> None:
    hub.claimed = {WEIGHTS: 10**18}
    message = refused(hub, tmp_path / "models")
    assert "1000000000000.0 MB" in message and "free" in message
    assert WEIGHTS not in hub.downloads()


def test_a_hub_in_trouble_is_asked_again(hub: FakeHub, tmp_path: Path) -> None:
    hub.statuses = [503, 429, 500]
    assert pull(hub, tmp_path / "models")[0]
    hub.statuses = [503] * 5
    with pytest.raises(HubError, match="answered 503"):
        pull(hub, tmp_path / "models")


def test_no_network_is_one_sentence(hub: FakeHub, tmp_path: Path) -> None:
    hub.url = "http://127.0.0.1:9"  # the discard port, where nobody listens
    message = refused(hub, tmp_path / "models")
    assert "127.0.0.1 cannot be reached" in message
    assert "HTTPS_PROXY" in message and "HF_ENDPOINT" in message and "WISP_MODELS_DIR" in message


def test_what_is_not_there_or_not_given_is_told_with_what_to_do(hub: FakeHub, tmp_path: Path) -> None:
    models = tmp_path / "models"
    assert "has no openai/whisper-none" in refused(hub, models, "openai/whisper-none")
    hub.token = "hf_right"
    assert "HF_TOKEN" in refused(hub, models)
    assert "for the token in HF_TOKEN" in refused(hub, models, token="hf_wrong")
    hub.gated = True
    assert "accepting its terms" in refused(hub, models)
    assert pull(hub, models, token="hf_right")[0]


def test_the_token_stays_with_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    with fake_hub() as cdn:
        cdn.repos = hub.repos
        hub.elsewhere = cdn.url
        pull(hub, tmp_path / "models", token="hf_secret")
    assert cdn.asked and {token for *_, token in cdn.asked} == {None}
    assert {token for *_, token in hub.asked} == {"Bearer hf_secret"}


def test_a_proxy_is_used(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", hub.url)
    hub.url = "http://hub.invalid"
    assert pull(hub, tmp_path / "models")[0]


def test_what_is_no_hub_or_no_whisper_is_told(hub: FakeHub, tmp_path: Path) -> None:
    models = tmp_path / "models"
    whisper = hub.repos[REPO]
    hub.repos["someone/bert"] = whisper | {"config.json": b'{"model_type": "bert"}'}
    assert "'bert'" in refused(hub, models, "someone/bert")
    hub.repos["someone/ggml"] = {"ggml-tiny.bin": b""}
    assert "has no config.json" in refused(hub, models, "someone/ggml")
    hub.statuses = [200]
    assert "hub" in refused(hub, models)
    hub.url = "hub.example"
    assert "HF_ENDPOINT" in refused(hub, models)


def test_files_without_sums_are_not_taken(hub: FakeHub, tmp_path: Path) -> None:
    hub.states_sums = False
    assert "states no checksum of config.json" in refused(hub, tmp_path / "models")


def test_a_description_without_end_or_floor_is_one_sentence(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "MOST_JSON_BYTES", 200_000)
    hub.description = b"[" * 150_000
    assert "is not the JSON object" in refused(hub, tmp_path / "models")
    hub.description = b'{"sha": "\\u001b]0;owned\\u0007", "siblings": []}'
    assert "does not answer like a Hugging Face hub" in refused(hub, tmp_path / "models")
    hub.endless = True
    assert "more than the limit of 200000 bytes" in refused(hub, tmp_path / "models")


def test_shards_are_fetched_with_their_index(hub: FakeHub, tmp_path: Path) -> None:
    files = hub.repos["someone/sharded"] = dict(hub.repos[REPO])
    files["model-00001-of-00001.safetensors"] = files.pop(WEIGHTS)
    files["model.safetensors.index.json"] = b'{"weight_map": {"x": "model-00001-of-00001.safetensors"}}'
    pull(hub, tmp_path / "models", "someone/sharded")
    assert (tmp_path / "models" / "sharded" / "model-00001-of-00001.safetensors").is_file()


def test_a_folder_that_somebody_made_is_left_alone(hub: FakeHub, tmp_path: Path) -> None:
    own = save_synthetic(tmp_path / "models" / "tiny_en")
    (own / "notes.txt").touch()
    with pytest.raises(HubError, match="was not made by wisp models pull"):
        pull(hub, tmp_path / "models")
    assert (own / "notes.txt").exists()


def test_a_folder_that_cannot_be_written_is_one_sentence(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "models").touch()
    with pytest.raises(HubError, match="cannot be written"):
        pull(hub, tmp_path / "models")


def test_one_command_at_a_time_fetches_a_model(hub: FakeHub, tmp_path: Path) -> None:
    models = tmp_path / "models"
    under_way, told = threading.Event(), []

    def gained(_: int) -> None:
        if not under_way.is_set():
            under_way.set()
            with pytest.raises(HubError) as raised:
                pull(hub, models)
            told.append(str(raised.value))

    with Hub(hub.url) as client:
        assert Pull(client, models, REPO).fetch(gained)
    assert told == ["Another command is fetching tiny_en now."]


def test_removing_takes_the_model_and_what_is_unfinished(hub: FakeHub, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "tiny_en"
    hub.cuts = [40_000, *[0] * 4]
    refused(hub, folder.parent)
    remove(folder)
    assert list(folder.parent.iterdir()) == []
    pull(hub, folder.parent)
    linked = folder.with_name("base")
    linked.symlink_to(folder)
    remove(linked)
    assert folder.is_dir() and not os.path.lexists(linked)
    remove(folder)
    assert list(folder.parent.iterdir()) == []
    shutil.rmtree(folder.parent)
    remove(folder)


def test_a_ctranslate2_repository_is_fetched(hub: FakeHub, tmp_path: Path) -> None:
    models, repo = tmp_path / "models", "Systran/faster-whisper-small"
    files = {"config.json": b'{"suppress_ids": [1]}', "model.bin": b"x" * 200_000, "vocabulary.json": b"[]"}
    hub.repos[repo] = files | {"README.md": b"# small", "vocabulary.txt": b""}
    assert pull(hub, models, repo)[0]
    assert {path.name for path in (models / "small").iterdir()} == {*files, "wisp.json"}
    hub.repos[repo]["config.json"] = b"{}"
    hub.commit = "6b" * 20
    with pytest.raises(HubError, match=r"isn't a Whisper model: its config\.json lacks suppress_ids"):
        pull(hub, models, repo)


def test_another_repositorys_form_of_a_model_is_not_written_over(hub: FakeHub, tmp_path: Path) -> None:
    models, other = tmp_path / "models", "Systran/faster-whisper-tiny.en"
    pull(hub, models)
    hub.repos[other] = hub.repos[REPO]
    with pytest.raises(HubError, match=f"contains {REPO}, another repository's form of tiny_en"):
        pull(hub, models, other)
    record = Record.read(models / "tiny_en")
    assert record is not None and record.repo == REPO
