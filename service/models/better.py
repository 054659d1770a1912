"""How to get a better model than the embedded one: the right command for how this server was started."""

import os
import shlex
import socket
import sys
from pathlib import Path

from service.settings import Settings

PULL = "models pull tiny.en"
CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv")  # Docker's and Podman's
MAKEFILE = Path(__file__).parents[2] / "Makefile"


def pull_command(settings: Settings) -> str:
    """The command that installs tiny.en where this server finds it after a restart."""
    if "KUBERNETES_SERVICE_HOST" in os.environ:  # a pod keeps nothing, so its image must contain the model
        return "docker build --build-arg MODEL=tiny.en ."
    if not MAKEFILE.is_file() and any(Path(mark).exists() for mark in CONTAINER_MARKS):  # not a clone in a container
        name = socket.gethostname()  # an engine names a container by its ID
        return f"docker exec {name} wisp {PULL} && docker restart {name}"
    words = [_program(), *PULL.split()]
    if settings.models_dir != Settings().models_dir:
        words += ["--models-dir", str(settings.models_path().absolute())]
    return shlex.join(words)


def embedded_notice(settings: Settings) -> str:
    """A notice for users of the embedded model."""
    notice = (
        "This is the small embedded model, trained mostly on synthetic voices: it makes many mistakes on real speech. "
        f"For OpenAI's tiny.en run: {pull_command(settings)}"
    )
    if MAKEFILE.is_file():
        notice += f" (or, without access to a hub, {shlex.join(['make', '-C', str(MAKEFILE.parent), 'setup'])})"
    return f"{notice}. Then restart Wisp."


def _program() -> str:
    """`wisp` as it was started or as its Python has it; the bare name if neither is known."""
    beside = Path(sys.executable).parent / "wisp"
    return next((str(path) for path in (Path(sys.argv[0]), beside) if path.name == "wisp" and path.is_file()), "wisp")
