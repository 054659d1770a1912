"""The kept machine code: what was kept is found, and nothing that someone else could have put there."""

import os
from pathlib import Path

import pytest

from service.guest.code_cache import MAX_ENTRIES, CodeCache, user_cache_folder
from service.guest.runner import Guest
from tests.support.guests import limits

GUEST = '(module (memory (export "memory") 1) (func (export "_start")))'


def test_what_is_kept_is_found(tmp_path: Path) -> None:
    cache = CodeCache(tmp_path / "new" / "folder")
    assert cache.find("key") is None
    cache.keep("key", b"code")
    assert cache.find("key") == b"code"
    assert cache.find("other") is None
    cache.keep("key", b"newer")
    assert cache.find("key") == b"newer"
    assert (tmp_path / "new" / "folder").stat().st_mode & 0o777 == 0o700
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["key.cwasm"]


@pytest.mark.parametrize("damage", [b"", b"short", b"\0" * 64])
def test_a_damaged_entry_is_none(tmp_path: Path, damage: bytes) -> None:
    cache = CodeCache(tmp_path / "cache")
    cache.keep("key", b"code")
    (tmp_path / "cache" / "key.cwasm").write_bytes(damage)
    assert cache.find("key") is None


@pytest.mark.parametrize("what", ["cache", "cache/key.cwasm"])
def test_what_others_can_write_is_not_trusted(tmp_path: Path, what: str) -> None:
    cache = CodeCache(tmp_path / "cache")
    cache.keep("key", b"code")
    (tmp_path / what).chmod(0o777)
    assert cache.find("key") is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("what", ["cache", "cache/key.cwasm"])
def test_what_others_own_is_not_trusted(tmp_path: Path, what: str) -> None:
    cache = CodeCache(tmp_path / "cache")
    cache.keep("key", b"code")
    os.chown(tmp_path / what, 12345, -1)
    assert cache.find("key") is None


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    CodeCache(tmp_path / "real").keep("key", b"code")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert CodeCache(tmp_path / "link").find("key") is None


def test_nothing_is_kept_in_a_folder_of_others(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o777)
    CodeCache(folder).keep("key", b"code")
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = CodeCache(tmp_path / "file")
    cache.keep("key", b"code")
    assert cache.find("key") is None


def test_old_versions_are_removed(tmp_path: Path) -> None:
    cache = CodeCache(tmp_path / "cache")
    for n in range(MAX_ENTRIES + 3):
        cache.keep(str(n), b"code")
        os.utime(tmp_path / "cache" / f"{n}.cwasm", (n, n))
    cache.keep("latest", b"code")
    assert cache.find("latest") == b"code"
    assert len(list((tmp_path / "cache").iterdir())) == MAX_ENTRIES


@pytest.mark.parametrize("given", ["", "relative"])
def test_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache_folder() == tmp_path / "wisp"
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    monkeypatch.setenv("HOME", "/home/someone")
    assert user_cache_folder() == Path("/home/someone/.cache/wisp")


def test_a_guest_starts_from_its_kept_code(tmp_path: Path) -> None:
    """Also when the entry is sound but no code of this library: then it is compiled and kept anew."""
    wasm, folder = tmp_path / "guest.wat", tmp_path / "cache"
    wasm.write_text(GUEST)
    sizes = []
    for _ in range(2):
        with Guest(wasm, cache_folder=folder) as guest:
            guest.run({}, (), {}, lambda _: None, limits())
        (entry,) = folder.iterdir()
        sizes.append(entry.stat().st_size)
    CodeCache(folder).keep(entry.stem, b"no machine code")
    with Guest(wasm, cache_folder=folder) as guest:
        guest.run({}, (), {}, lambda _: None, limits())
    assert entry.stat().st_size == sizes[0] == sizes[1]
