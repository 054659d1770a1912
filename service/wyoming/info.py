"""Describes Wisp to Wyoming clients: its models and their languages."""

from importlib.metadata import version

from wyoming.info import AsrModel, AsrProgram, Attribution, Info

from service.http.service import Service
from service.models.catalogue import Entry

NAME = "Wisp"  # Home Assistant shows it
WHISPER = Attribution("OpenAI", "https://github.com/openai/whisper")


def info(service: Service) -> Info:
    """All models, the default first. Reads files, even while the default is loading: clients ask only once."""
    models = [
        _model(entry, languages)
        for entry in service.catalogue.entries()
        if (languages := service.languages(entry, while_loading=True))
    ]
    program = AsrProgram(
        name=NAME,
        attribution=WHISPER,
        installed=True,
        description="Self-hosted Whisper",
        version=version("wisp"),
        models=models,
        supports_transcript_streaming=True,
    )
    return Info(asr=[program])


def _model(entry: Entry, languages: list[str]) -> AsrModel:
    made_by = (
        Attribution(entry.repo.partition("/")[0], f"https://huggingface.co/{entry.repo}") if entry.repo else WHISPER
    )
    return AsrModel(
        name=entry.name, attribution=made_by, installed=True, description=entry.name, version=None, languages=languages
    )
