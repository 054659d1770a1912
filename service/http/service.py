"""What the routes serve: the models, which of them a request gets, and how each is described."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from service import errors
from service.http.api_keys import Rights
from service.http.form.table import shown
from service.http.jobs import Job, mark_as_seen
from service.http.openapi.document import WILDCARDS
from service.http.realtime.places import LiveSessions
from service.http.realtime.secrets import ClientSecrets
from service.http.uploads import Uploads
from service.models.better import embedded_notice
from service.models.catalogue import Catalogue, Entry
from service.models.places import EMBEDDED_NAME, canonical_name
from service.settings import Settings
from service.transcription.admission import Admission
from service.transcription.engine import Engine
from service.transcription.transcriber import Options, Transcriber, check_options

log = logging.getLogger("wisp")

LOAD_WAIT_S = 60.0  # how long a transcription waits for a model that is still being read or loaded


@dataclass(frozen=True)
class Service:
    """Many models; the default may still be loading.

    `readiness` raises NotReady while the default can't transcribe, `liveness` once only a restart helps.
    """

    engine: Engine
    readiness: Callable[[], Awaitable[None]]
    liveness: Callable[[], None]
    uploads: Uploads
    live: LiveSessions
    secrets: ClientSecrets
    under_way: set[Job] = field(default_factory=set)
    pulls: dict[str, float] = field(default_factory=dict)  # name of a model being pulled → share done

    @property
    def settings(self) -> Settings:
        """The server's settings."""
        return self.engine.settings

    @property
    def catalogue(self) -> Catalogue:
        """All models found here."""
        return self.engine.served.catalogue

    def admission(self) -> Admission | None:
        """The places for transcriptions, whatever their model; None before the first model is loaded."""
        return self.engine.shared.admission()

    def find(self, name: str, rights: Rights) -> tuple[Entry, bool]:
        """The model that a client means, and whether by its own name. Aliases mean the default.

        Ignores case and prefixes: `openai/whisper-1`. Raises ModelNotFound, ModelBeingPulled, ModelNotAllowed.
        """
        entry, by_own_name = self._find(name, rights)
        rights.check(entry.name)
        return entry, by_own_name

    def _find(self, name: str, rights: Rights) -> tuple[Entry, bool]:
        aliases = {alias.lower() for alias in self.settings.alias_names()}
        plain = name.strip().lower()
        spellings = (plain, plain.rpartition("/")[2].removeprefix("faster-"))
        if any(spelling in aliases for spelling in spellings):
            return self.catalogue.default, False
        if (found := self.catalogue.find(name)) is not None:
            return found, True
        for being_pulled, share in list(self.pulls.items()):
            if canonical_name(spellings[1]) == being_pulled and rights.may_use(being_pulled):
                raise errors.ModelBeingPulled(being_pulled, share)
        if any(fnmatchcase(spelling, alias) for spelling in spellings for alias in aliases):
            return self.catalogue.default, False
        raise errors.ModelNotFound(shown(name), self.names(rights))

    def names(self, rights: Rights) -> list[str]:
        """All names that the request may use: the default's, its aliases, the other models'."""
        default, *others = self.catalogue.entries()
        names = self.default_names() if rights.may_use(default.name) else []
        return [*names, *(entry.name for entry in others if rights.may_use(entry.name))]

    def default_names(self) -> list[str]:
        """The default's name, then its aliases."""
        name = self.catalogue.default.name
        return [name, *sorted(self.settings.alias_names() - {name})]

    def default(self, rights: Rights) -> Entry:
        """The model of a request that names none. Raises ModelNotAllowed."""
        rights.check(self.catalogue.default.name)
        return self.catalogue.default

    @asynccontextmanager
    async def transcriber(self, entry: Entry) -> AsyncIterator[Transcriber]:
        """A block in which a transcription by that model can be submitted. Waits for the model.

        Raises NotReady, ModelBroken, ModelNotFound, ModelBeingRemoved.
        """
        if entry.spec is self.catalogue.default.spec:
            yield await self._default()
            return
        with self.engine.served.claimed(entry) as coming:
            await _ended(coming)
            yield coming.result()

    async def _default(self) -> Transcriber:
        """The default model's. Waits for it; raises NotReady if it failed to load or takes too long."""
        loaded = self.engine.loaded
        await _ended(loaded)
        try:
            return loaded.result()
        except Exception:
            raise errors.NotReady("The model could not be loaded; the server's log says why.") from None

    def check(self, entry: Entry, options: Options) -> None:
        """Raise UnsupportedValue for options that the model doesn't support; accept all until it has been read."""
        if (transcriber := self.engine.served.transcriber(entry)) is not None:
            transcriber.check(options)

    def others_may_know(self) -> bool:
        """Whether a model other than the default may know more than English."""
        return any(entry.may_know_others() for entry in self.catalogue.entries()[1:])

    def able(self, options: Options, rights: Rights) -> Entry | None:
        """A model other than the default that supports these options: its multilingual sibling, else the smallest.

        Reads files. None if there is none.
        """
        default, *others = self.catalogue.entries()
        sibling = canonical_name(default.name).removesuffix("_en")
        usable = [entry for entry in others if entry.may_know_others() and rights.may_use(entry.name)]
        for entry in sorted(usable, key=lambda entry: (canonical_name(entry.name) != sibling, entry.n_bytes())):
            languages = self.languages(entry)
            wanted = {options.language} - {None} or set(options.languages)
            speaks = bool(wanted & set(languages) if wanted else languages)
            if speaks and (options.task != "translate" or len(languages) > 1):
                return entry
        return None

    def model_object(self, entry: Entry, name: str = "") -> dict[str, Any]:
        """OpenAI's model object under that name, with more about the model. Reads its files.

        The embedded model's `description` says how to get a better one.
        """
        transcriber = self.engine.served.transcriber(entry)
        languages = self.languages(entry)
        return {
            "id": name or entry.name,
            "object": "model",
            "created": self.engine.created,
            "owned_by": "wisp",
            **({"languages": languages} if languages else {}),
            "size": entry.n_bytes(),
            "licence": entry.licence(),
            "source": entry.repo or entry.source,
            "loaded": transcriber is not None and transcriber.model.is_loaded,
            **({"description": embedded_notice(self.settings)} if entry.name == EMBEDDED_NAME else {}),
        }

    def languages(self, entry: Entry, *, while_loading: bool = False) -> list[str]:
        """Whisper's codes of the languages that a model knows; empty if its files can't be read.

        Also empty while the default is loading, because reading other files would slow that down, unless
        `while_loading`.
        """
        if (transcriber := self.engine.served.transcriber(entry)) is not None:
            return list(transcriber.model.tokenizer.languages) or ["en"]
        if not (while_loading or self.engine.loaded.done()):
            return []
        try:
            return list(entry.languages())
        except errors.ModelError as error:
            log.warning("model %s: %s", entry.name, error)
            return []

    def listed(self, rights: Rights) -> list[dict[str, Any]]:
        """The objects of the models that the request may use: the default, its aliases without wildcards, the others.

        Reads files.
        """
        first, *others = self.catalogue.entries()
        found = [self.model_object(entry) for entry in others if rights.may_use(entry.name)]
        if not rights.may_use(first.name):
            return found
        own = self.model_object(first)
        aliases = sorted(name for name in self.settings.alias_names() - {first.name} if not WILDCARDS & set(name))
        return [own, *(own | {"id": name, "alias_of": first.name} for name in aliases), *found]


class Choice:
    """Chooses one request's model as its fields arrive."""

    def __init__(self, service: Service, rights: Rights, *, may_route: bool | None = None) -> None:
        """`may_route`: whether another model than the default may serve a language; None leaves it to the setting."""
        self._service, self._rights = service, rights
        self._may_route = service.settings.route_languages == "yes" if may_route is None else may_route
        self._named: Entry | None = None
        self._by_own_name = False

    def take(self, name: str) -> None:
        """Take the request's `model`. Raises ModelNotFound, ModelNotAllowed, ModelBeingPulled."""
        self._named, self._by_own_name = self._service.find(name, self._rights)

    def check(self, options: Options) -> None:
        """Raise UnsupportedValue for options that no model could support that may still be chosen."""
        try:
            self._service.check(self._named or self._service.catalogue.default, options)
        except errors.UnsupportedValue:
            if not self._service.others_may_know():
                raise

    @asynccontextmanager
    async def transcriber(self, options: Options) -> AsyncIterator[Transcriber]:
        """A block in which the transcription can be submitted, once all fields are known.

        Raises what Service.transcriber() does, ModelNotAllowed, and UnsupportedValue, naming a model that could do it.
        """
        service = self._service
        entry = self._named or service.default(self._rights)
        async with service.transcriber(entry) as transcriber:
            refusal = _refusal(transcriber, options)
            if refusal is None:
                yield transcriber
                return
        other = await asyncio.to_thread(service.able, options, self._rights)
        if other is None:
            raise refusal
        if self._by_own_name or not self._may_route:
            advice = f" This server's {other.name} can: send model={other.name}."
            raise errors.UnsupportedValue(refusal.message + advice, param=refusal.param)
        log.info("routed to %s: %s", other.name, refusal)
        async with service.transcriber(other) as transcriber:
            yield transcriber


def _refusal(transcriber: Transcriber, options: Options) -> errors.UnsupportedValue | None:
    try:
        check_options(options, transcriber.model.name, transcriber.model.tokenizer)
    except errors.UnsupportedValue as error:
        return error
    return None


async def _ended(future: Any) -> None:
    """Wait for a thread's future to end. Raises NotReady if that takes too long."""
    if future.done():
        return
    waiting = asyncio.wrap_future(future)
    waiting.add_done_callback(mark_as_seen)
    # Not wait_for: that of Python 3.11 may swallow the cancellation of a stopping server.
    await asyncio.wait((waiting,), timeout=LOAD_WAIT_S)
    if not future.done():
        raise errors.NotReady("The model is still loading.")
