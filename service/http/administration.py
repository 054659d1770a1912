"""The operator's routes: pull, unload and remove models, list the loaded ones. Each needs the right to administer."""

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from service import errors
from service.http.api_keys import Rights, rights_of
from service.http.jobs import mark_as_seen
from service.http.service import Service
from service.http.small_body import json_object
from service.http.sse import COMMENT, MEDIA_TYPE, frame
from service.models.loaded import Model
from service.models.names import repo_of
from service.models.places import canonical_name
from service.models.pull import Pull

log = logging.getLogger("wisp")

MAX_BODY_BYTES = 4096
TICK_S = 0.5  # between two events of a pull's progress
TOKEN_VARIABLE = "HF_TOKEN"
NEVER = "0001-01-01T00:00:00Z"  # Ollama's time for a model that stays loaded


def _service(request: Request) -> Service:
    """The service, for a request that may administer it. Raises AdministrationRefused."""
    service: Service = request.app.state.service
    settings = service.settings
    if not rights_of(request.scope, settings).is_admin:
        raise errors.AdministrationRefused(has_keys=bool(settings.api_keys or settings.api_keys_file))
    return service


async def pull(request: Request) -> Response:
    """POST /v1/models {"model": NAME}: fetch it from the hub into the models folder, with its progress as events.

    It stops when its client leaves; the same request resumes it.
    """
    service = _service(request)
    named = await _named(request)
    try:
        repo = repo_of(named)
    except errors.ModelError as error:
        raise errors.InvalidValue(str(error), param="model") from None
    name = canonical_name(repo.rpartition("/")[2])
    rights = rights_of(request.scope, service.settings)
    if not name:
        raise errors.InvalidValue(f"'{named}' has no model's name.", param="model")
    rights.check(name)
    default, folder = service.catalogue.default, service.settings.models_path() / name
    if folder in (default.path, default.spec.weights, *default.spec.weights.parents):
        raise errors.ModelNotRemovable(
            f"The model '{name}' is the server's default: pull it with wisp models pull, and restart the server."
        )
    if name in service.pulls:
        raise errors.ModelBeingPulled(name, service.pulls[name])
    service.pulls[name] = 0.0
    pulling = _Pulling(service, repo, name)
    try:
        await asyncio.to_thread(pulling.begin)
    except BaseException:
        pulling.end()
        raise
    log.info("pulling %s", repo)
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return StreamingResponse(pulling.events(), media_type=MEDIA_TYPE, headers=headers)


async def _named(request: Request) -> str:
    """The `model` of a small JSON object. Raises MalformedForm, MissingField, InvalidValue."""
    fields = await json_object(request, MAX_BODY_BYTES, '{"model": NAME}')
    named = fields.get("model")
    if not named:
        raise errors.MissingField("model")
    if not isinstance(named, str):
        raise errors.InvalidValue("The field 'model' is a name.", param="model")
    return named.strip()


class _Pulling:
    """One pull in a thread, and its events for the event loop."""

    def __init__(self, service: Service, repo: str, name: str) -> None:
        self._service, self._repo, self._name = service, repo, name
        self._hub = contextlib.ExitStack()
        self._n_bytes = self._total = 0  # downloaded, of all
        self._is_stopped = threading.Event()
        self._fetching: Future[bool] = Future()

    def begin(self) -> None:
        """List the files to fetch and start. Raises PullFailed."""
        from service.models.hub import Hub  # HTTPX takes a third of a second

        settings = self._service.settings
        try:
            hub = self._hub.enter_context(Hub(settings.hub, os.environ.get(TOKEN_VARIABLE, "")))
            pull = Pull(hub, settings.models_path(), self._repo)
        except errors.HubError as error:
            raise errors.PullFailed(str(error)) from None
        self._total = pull.n_bytes
        threading.Thread(target=self._fetch, args=(pull,), name="wisp-pull", daemon=True).start()

    def _fetch(self, pull: Pull) -> None:
        try:
            self._fetching.set_result(pull.fetch(self._gained))
        except BaseException as error:
            self._fetching.set_exception(error)
        finally:
            self.end()

    def _gained(self, n_bytes: int) -> None:
        self._n_bytes += n_bytes
        self._service.pulls[self._name] = min(1.0, self._n_bytes / max(1, self._total))
        if self._is_stopped.is_set():
            raise errors.ClientGone

    async def events(self) -> AsyncIterator[bytes]:
        """Progress, then the model's object or an error's envelope."""
        service, name = self._service, self._name
        waiting = asyncio.wrap_future(self._fetching)
        waiting.add_done_callback(mark_as_seen)
        progress = {"status": "pulling", "model": name, "completed": 0, "total": self._total}
        try:
            yield frame(progress)
            while not waiting.done():
                await asyncio.wait((waiting,), timeout=TICK_S)
                is_further = progress["completed"] != self._n_bytes
                progress["completed"] = self._n_bytes
                yield frame(progress) if is_further else COMMENT
            try:
                waiting.result()
            except errors.HubError as error:
                raise errors.PullFailed(str(error)) from None
            entry, _ = service.find(name, Rights())
            described = await asyncio.to_thread(service.model_object, entry)
            yield frame(progress | {"status": "success", "completed": self._total, "object": described})
        except errors.WispError as error:
            log.warning("%s is not pulled: %s", self._repo, error)
            yield frame(error.envelope())
        except OSError:
            log.exception("%s is not pulled", self._repo)
            yield frame(errors.InternalError().envelope())
        finally:
            self._is_stopped.set()

    def end(self) -> None:
        """Disconnect from the hub, with the model or without."""
        self._service.pulls.pop(self._name, None)
        self._hub.close()


async def unload(request: Request) -> Response:
    """DELETE /v1/models/{id}: free its memory until the next request; with ?remove=true remove what was pulled."""
    service = _service(request)
    entry, by_own_name = service.find(request.path_params["id"], rights_of(request.scope, service.settings))
    removes = request.query_params.get("remove", "").lower()
    if removes not in ("", "true", "false"):
        raise errors.InvalidValue("remove is true or false.", param="remove")
    if removes == "true":
        if not by_own_name:
            raise errors.ModelNotRemovable(f"A model is removed by its own name: this one is '{entry.name}'.")
        await asyncio.to_thread(service.engine.served.remove, entry)
        log.info("model %s removed", entry.name)
        is_unloaded = True
    else:
        is_unloaded = await asyncio.to_thread(service.engine.served.unload, entry)
    body = {"id": entry.name, "object": "model", "deleted": removes == "true", "unloaded": is_unloaded}
    return JSONResponse(body)


async def loaded(request: Request) -> Response:
    """GET /api/ps: the models in memory, in Ollama's shape."""
    service = _service(request)
    models = [transcriber.model for transcriber in service.engine.served.transcribers()]
    rights = rights_of(request.scope, service.settings)
    shown = [model for model in models if model.is_loaded and rights.may_use(model.name)]
    return JSONResponse({"models": [_loaded(model, service) for model in shown]})


def _loaded(model: Model, service: Service) -> dict[str, Any]:
    occupant, idle_s = model.occupant, service.settings.idle_unload_s
    leaves_at = datetime.now(UTC) + timedelta(seconds=model.room.leaves_in(occupant, idle_s)) if idle_s else None
    return {
        "name": model.name,
        "model": model.name,
        "size": occupant.n_bytes,
        "size_vram": occupant.n_bytes if model.target.name == "gpu" else 0,
        "details": {"family": "whisper", "target": model.target.name},
        "in_use": occupant.n_users,
        "expires_at": leaves_at.isoformat(timespec="seconds") if leaves_at is not None else NEVER,
    }
