"""The command for a better model, for each way of starting Wisp."""

import socket
import sys
from pathlib import Path

import pytest

from service.models import better as better_model
from service.models.better import embedded_notice, pull_command
from service.settings import Settings


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Not in a container."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(better_model, "CONTAINER_MARKS", ())
    return monkeypatch


def test_a_virtual_environments_own_command_is_named(tmp_path: Path, outside: pytest.MonkeyPatch) -> None:
    wisp = tmp_path / "bin of mine" / "wisp"
    wisp.parent.mkdir()
    wisp.touch()
    outside.setattr(sys, "argv", [str(wisp)])
    assert pull_command(Settings()) == f"'{wisp}' models pull tiny.en"
    outside.setattr(sys, "argv", ["-c"])
    outside.setattr(sys, "executable", str(wisp.parent / "python"))
    assert pull_command(Settings(models_dir="/srv/models")) == f"'{wisp}' models pull tiny.en --models-dir /srv/models"
    outside.setattr(sys, "executable", "/nowhere/python")
    assert pull_command(Settings()) == "wisp models pull tiny.en"


def test_a_container_is_named_to_its_engine(tmp_path: Path, outside: pytest.MonkeyPatch) -> None:
    outside.setattr(better_model, "CONTAINER_MARKS", (str(tmp_path),))
    assert "docker" not in pull_command(Settings()), "a clone in a container is a clone"
    outside.setattr(better_model, "MAKEFILE", tmp_path / "absent")
    outside.setattr(socket, "gethostname", lambda: "3f2a")
    assert pull_command(Settings()) == "docker exec 3f2a wisp models pull tiny.en && docker restart 3f2a"
    outside.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert pull_command(Settings()) == "docker build --build-arg MODEL=tiny.en ."


def test_a_clone_can_set_up_again(tmp_path: Path, outside: pytest.MonkeyPatch) -> None:
    assert f"make -C {better_model.MAKEFILE.parent} setup" in embedded_notice(Settings())
    outside.setattr(better_model, "MAKEFILE", tmp_path / "absent")
    assert "make" not in embedded_notice(Settings()).replace("it makes many", "")
