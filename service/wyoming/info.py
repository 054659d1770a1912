"""What Wisp tells Wyoming clients about itself: its models and their languages."""

import logging
from importlib.metadata import version

from wyoming.info import AsrModel, AsrProgram, Attribution, Info

from service.errors import ModelError
from service.http.service import Service
from service.models.catalogue import Entry

log = logging.getLogger("wisp")

NAME = "Wisp"  # Home Assistant shows it
WHISPER = Attribution("OpenAI", "https://github.com/openai/whisper")


def info(service: Service) -> Info:
    """All models, the default first. Reads files. Complete while the default is still loading: clients ask once."""
    models = [
        _model(entry, languages) for entry in service.catalogue.entries() if (languages := _languages(service, entry))
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


def _languages(service: Service, entry: Entry) -> list[str]:
    try:
        if entry.spec is service.engine.spec:
            return list(service.engine.read().tokenizer.languages) or ["en"]
        return list(entry.languages())
    except ModelError as error:
        log.warning("model %s: %s", entry.name, error)
        return []
