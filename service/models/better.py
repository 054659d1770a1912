"""How to get a better model than the embedded one: the command for the way in which this server was started."""

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
    """The command that gets tiny.en to where this server finds it when it starts again."""
    if "KUBERNETES_SERVICE_HOST" in os.environ:  # a pod keeps nothing: its image has to hold the model
        return "docker build --build-arg MODEL=tiny.en ."
    if not MAKEFILE.is_file() and any(Path(mark).exists() for mark in CONTAINER_MARKS):  # not a clone in a container
        name = socket.gethostname()  # an engine gives a container its own id for a name
        return f"docker exec {name} wisp {PULL} && docker restart {name}"
    words = [_program(), *PULL.split()]
    if settings.models_dir != Settings().models_dir:
        words += ["--models-dir", str(settings.models_path().absolute())]
    return shlex.join(words)


def embedded_notice(settings: Settings) -> str:
    """What whoever is served by the embedded model should know."""
    notice = (
        "This is the small embedded model, trained mostly on synthetic voices: it makes many mistakes on real speech. "
        f"For OpenAI's tiny.en run: {pull_command(settings)}"
    )
    if MAKEFILE.is_file():
        notice += f" (or, where no hub is reached, {shlex.join(['make', '-C', str(MAKEFILE.parent), 'setup'])})"
    return f"{notice}. Then start Wisp again."


def _program() -> str:
    """`wisp` as it was started, or as its Python has it; the bare name where neither is known."""
    beside = Path(sys.executable).parent / "wisp"
    return next((str(path) for path in (Path(sys.argv[0]), beside) if path.name == "wisp" and path.is_file()), "wisp")
