"""Scripts that complete the command line in a shell, generated from the parser by shtab."""

import argparse

import shtab

from service.cli.parser import FILE, FOLDER, INSTALLED
from service.models.names import KNOWN_NAMES

# wisp itself lists the installed models, in a quarter of a second.
NAMES = shtab.cmd("wisp models list --names 2>/dev/null")


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion script for bash, zsh or fish."""
    _mark(parser)
    return shtab.complete(parser, shell)


def _mark(parser: argparse.ArgumentParser) -> None:
    """Set how each argument without choices is completed, in this parser and its subcommands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _mark(command)
        elif action.dest == "setting_model":
            action.complete = NAMES  # type: ignore[attr-defined]
        elif found := {FILE: shtab.FILE, FOLDER: shtab.DIRECTORY, INSTALLED: NAMES}.get(str(action.metavar)):
            action.complete = found  # type: ignore[attr-defined]
        elif action.metavar and "|" in str(action.metavar):
            action.choices = str(action.metavar).split("|")
        elif action.metavar == "NAME":
            action.choices = KNOWN_NAMES
