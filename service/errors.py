"""All errors that users see: class, HTTP status, code, one sentence, and OpenAI's envelope around it."""

import errno
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)  # files, threads or processes, memory
MAX_SHOWN = 100  # characters of what a client sent


class WispError(Exception):
    """An error with one sentence for the user, `str(error)`. The class sets the HTTP response."""

    status = 500
    type = SERVER_ERROR
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = MappingProxyType({})  # of the response

    def __init_subclass__(
        cls,
        *,
        status: int = 0,
        type: str = "",
        code: str = "",
        param: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """What a subclass sets differently from its parent, as keywords of its `class` line."""
        cls.status, cls.type = status or cls.status, type or cls.type
        cls.code, cls.param = code or cls.code, param or cls.param
        cls.headers = MappingProxyType(headers) if headers is not None else cls.headers

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if param is not None:
            self.param = param

    def envelope(self) -> dict[str, dict[str, str | None]]:
        """OpenAI's error body, all four keys always present."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class StartError(WispError):
    """The service or the command cannot start because of a setting, a device or a file."""


class ModelError(StartError):
    """The requested model is missing, incomplete or broken; the sentence says what to do."""


class TokenizerMissing(ModelError):
    """A model without a vocabulary, and no other model here to take one from."""


class HubError(StartError):
    """A model cannot be downloaded from the hub; the sentence says why and what to do."""


class DeviceUnavailable(StartError):
    """This machine has no device for the requested target."""


class RequestError(WispError, status=400, type=INVALID_REQUEST):
    """The request is at fault; sending it again fails again."""


class MissingField(RequestError, code="missing_required_parameter"):
    """A required form field is missing."""

    def __init__(self, param: str) -> None:
        super().__init__(f"The form field '{param}' is required.", param=param)


class UnknownField(RequestError, code="unknown_parameter"):
    """A form field that this API does not have."""

    def __init__(self, param: str) -> None:
        super().__init__(f"Unknown form field '{param}'.", param=param)


class InvalidValue(RequestError, code="invalid_value"):
    """A field's value is invalid: not a number, out of range, given twice."""


class UnsupportedValue(RequestError, code="unsupported_value"):
    """OpenAI's API has this value, but this model or version does not support it."""


class MalformedForm(RequestError, code="malformed_form"):
    """The body is broken or of an unsupported type, or the body or query has too many fields."""


class UnreadableAudio(RequestError, code="unreadable_audio", param="file"):
    """The file is empty, corrupt or in an unsupported format."""


class AudioTooShort(RequestError, code="audio_too_short", param="file"):
    """The audio is too short to transcribe."""

    def __init__(self, seconds: float, minimum_seconds: float) -> None:
        milliseconds = math.floor(seconds * 1000)  # rounding up could show a length that is enough
        super().__init__(f"The audio is {milliseconds / 1000:.3f} s long; it must be at least {minimum_seconds:g} s.")


class AudioTooLong(RequestError, status=413, code="audio_too_long", param="file"):
    """The decoded audio is longer than this server accepts (a small file can hold hours)."""

    def __init__(self, seconds: float, maximum_seconds: float) -> None:
        super().__init__(f"The audio is longer than this server's limit of {maximum_seconds:g} s.")


class NothingToCommit(RequestError, code="input_audio_buffer_commit_empty"):
    """Live audio was committed before there was enough of it."""

    def __init__(self) -> None:
        super().__init__("The audio buffer has less than 100 ms of audio: append some before you commit it.")


class UploadTooLarge(RequestError, status=413, code="upload_too_large", param="file"):
    """The request body is over the size limit, by its Content-Length or by the bytes read."""

    def __init__(self, n_bytes: int, maximum_bytes: int, *, announced: bool = False) -> None:
        found = f"its Content-Length is {n_bytes}" if announced else f"{n_bytes} bytes were read"
        super().__init__(f"The upload is over the limit of {maximum_bytes} bytes; {found}.")


class ModelNotFound(RequestError, status=404, code="model_not_found", param="model"):
    """This server has no model of that name."""

    def __init__(self, name: str, available: Sequence[str]) -> None:
        has = f"; this server has: {', '.join(available)}" if available else ""
        super().__init__(f"The model '{name}' does not exist{has}.")


class ModelNotAllowed(RequestError, status=403, code="model_not_allowed", param="model"):
    """The request's API key is for other models."""

    def __init__(self, name: str, allowed: Sequence[str]) -> None:
        super().__init__(f"This API key is not for the model '{name}'; it is for: {', '.join(allowed)}.")


class ModelTooLarge(RequestError, code="model_too_large", param="model"):
    """A model that cannot be loaded here, however many others leave memory."""

    def __init__(self, name: str, n_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"The model '{name}' takes about {n_bytes / 1e6:.0f} MB of memory, and models may take "
            f"{limit_bytes / 1e6:.0f} MB here (WISP_MODEL_MEMORY)."
        )


class ModelInUse(RequestError, status=409, code="model_in_use"):
    """A model that transcribes now cannot be unloaded or removed."""

    def __init__(self, name: str, n_users: int) -> None:
        used = "1 transcription" if n_users == 1 else f"{n_users} transcriptions"
        super().__init__(f"The model '{name}' is in use by {used}; try again when they have ended.")


class ModelNotRemovable(RequestError, status=409, code="model_not_removable"):
    """A model whose files are not Wisp's to remove; the sentence says why."""


class ModelBeingRemoved(RequestError, status=404, code="model_being_removed", param="model"):
    """A model whose files are being removed at this moment."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The model '{name}' is being removed.")


class AdministrationRefused(RequestError, status=403, code="administration_refused"):
    """A route that changes or shows which models are loaded, for a request that may not."""

    def __init__(self, *, has_keys: bool) -> None:
        super().__init__(
            "This API key may not administer models: its line in the keys file needs the word admin."
            if has_keys
            else "Models are administered with an API key that may, and this server has no keys: give it a keys file, "
            "or set WISP_ALLOW_ADMIN_WITHOUT_KEY=yes."
        )


class UploadTooSlow(
    RequestError, status=408, code="upload_too_slow", headers={"x-should-retry": "false", "Connection": "close"}
):
    """The request body arrived too slowly; `is_full`: too slowly for a server whose places are all taken.

    `idle_s`: the length of the pause, if that is the reason. The headers stop OpenAI's clients from sending it twice
    more, no faster, and close the connection so that the rest isn't read.
    """

    def __init__(self, floor_s: float, bytes_per_s: int, *, is_full: bool = False, idle_s: float | None = None) -> None:
        if idle_s is not None:
            super().__init__(f"The upload paused for {idle_s:g} s.")
            return
        where = " for a server whose places are all taken" if is_full else ""
        super().__init__(
            f"The upload was too slow{where}: its time limit is {floor_s:g} s plus one second per {bytes_per_s} bytes."
        )


class InvalidApiKey(RequestError, status=401, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"}):
    """The request has no valid API key. The error never shows what it sent."""

    def __init__(self, *, is_absent: bool) -> None:
        sent = "No API key was sent" if is_absent else "The API key is not valid for this server"
        super().__init__(f"{sent}; send one in the header 'Authorization: Bearer KEY'.")


class ForeignOrigin(RequestError, status=403, code="foreign_origin"):
    """A web page of another origin that no setting allows."""

    def __init__(self, origin: str) -> None:
        shown = origin if len(origin) <= MAX_SHOWN else f"{origin[:MAX_SHOWN]}…"
        super().__init__(
            f"Pages from {shown!r} may not use this server. Its operator can allow them with WISP_CORS_ORIGINS, or add "
            "the server's own host name to WISP_HOSTS."
        )


class UnknownHost(RequestError, status=421, code="unknown_host"):
    """The request's Host is not a name of this server."""

    def __init__(self, name: str) -> None:
        shown = name if len(name) <= MAX_SHOWN else f"{name[:MAX_SHOWN]}…"
        super().__init__(f"This server is not called {shown!r}. If it should be, add the name to WISP_HOSTS.")


class RouteNotFound(RequestError, status=404, code="not_found"):
    """The path does not exist."""


class MethodNotAllowed(RequestError, status=405, code="method_not_allowed"):
    """The path exists, but not for this HTTP method."""


class UpgradeRequired(RequestError, status=426, code="upgrade_required", headers={"Upgrade": "websocket"}):
    """A plain request to a route that is a WebSocket."""

    def __init__(self) -> None:
        super().__init__("This route is a WebSocket: connect with ws:// or, through a TLS proxy, wss://.")


class MalformedEvent(RequestError, code="malformed_event"):
    """A live session's client sent something other than an event of the protocol."""


class ClientGone(RequestError, status=499, code="client_closed_request"):
    """The client closed its connection before the response was ready. Only logged, with nginx's status."""

    def __init__(self) -> None:
        super().__init__("The client closed the connection before the transcript was ready.")


class QueueFull(WispError, status=429, type="rate_limit_error", code="queue_full"):
    """The queue is full; `retry_after_s` is a whole number of seconds, at least 1."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"The server's queue is full; try again in {max(1, retry_after_s)} s.")
        self.retry_after_s = max(1, retry_after_s)
        self.headers = {"Retry-After": str(self.retry_after_s)}


class LiveSessionsFull(
    WispError, status=429, type="rate_limit_error", code="live_sessions_full", headers={"Retry-After": "5"}
):
    """As many live sessions are open as there may be, or this client has its share of them."""

    def __init__(self) -> None:
        super().__init__("All live sessions are taken (WISP_LIVE_SESSIONS); try again later.")


class ClientSecretsFull(
    WispError, status=429, type="rate_limit_error", code="client_secrets_full", headers={"Retry-After": "60"}
):
    """As many client secrets are valid as there may be, or this client has its share of them."""

    def __init__(self) -> None:
        super().__init__("Too many client secrets are valid (WISP_LIVE_SECRETS); try again when some have expired.")


class SetAside(WispError):
    """A job that turned out long gives up its place for now. Internal: the job starts again later."""

    def __init__(self) -> None:
        super().__init__("The job waits for a place among the long ones.")


class Overloaded(WispError, status=503, code="overloaded", headers={"Retry-After": "5"}):
    """The system is out of open files, threads or address space."""

    def __init__(self) -> None:
        super().__init__("The server is overloaded; try again later.")

    @staticmethod
    def is_meant_by(error: BaseException | None) -> bool:
        """Whether an error or one of its causes says that the system is out of resources."""
        while error is not None:
            if isinstance(error, OSError) and error.errno in EXHAUSTED:
                return True
            error = error.__cause__ or error.__context__
        return False


class NotReady(WispError, status=503, code="not_ready", headers={"Retry-After": "1"}):
    """The model is loading or failed to load, or the server is stopping."""


class ModelBroken(WispError, status=503, code="model_broken", param="model", headers={"x-should-retry": "false"}):
    """A model other than the default cannot be loaded. The reason goes to the log, never to the client."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The model '{name}' cannot be loaded; the server's log says why.")


class ModelBeingPulled(WispError, status=503, code="model_being_pulled", param="model", headers={"Retry-After": "10"}):
    """A model that is being downloaded from the hub."""

    def __init__(self, name: str, share: float) -> None:
        super().__init__(f"The model '{name}' is being pulled: {100 * share:.0f} % of it is here.")


class PullFailed(WispError, status=502, code="pull_failed"):
    """A model that a request wanted pulled cannot be; the sentence says why."""


class DeviceLost(WispError, status=503, code="device_lost"):
    """The GPU failed during the request, or has failed before and is not back yet.

    `retry_after_s`: seconds until it may be opened again, rounded up; at least 1.
    """

    def __init__(self, retry_after_s: float = 1.0) -> None:
        super().__init__("The GPU has failed; the next request opens it again.")
        self.retry_after_s = max(1, math.ceil(retry_after_s))
        self.headers = {"Retry-After": str(self.retry_after_s)}


class NoSpace(WispError, status=503, code="no_space", headers={"Retry-After": "10"}):
    """The disk for uploads is full."""

    def __init__(self) -> None:
        super().__init__("The server has no disk space for this upload now; try again later.")


class DecoderLost(WispError, status=503, code="decoder_lost", headers={"Retry-After": "10"}):
    """The system ended the process that decoded the file, or none could be started."""

    def __init__(self) -> None:
        super().__init__("The server had too little memory or too few processes to decode the file; try again later.")


class DeadlineExceeded(WispError, status=503, code="deadline_exceeded", headers={"x-should-retry": "false"}):
    """The transcription exceeded its time limit; OpenAI's clients must not send the file again and wait as long."""

    def __init__(self, deadline_s: float) -> None:
        super().__init__(f"The transcription was stopped at its time limit of {deadline_s:.0f} s.")


class InternalError(WispError, code="internal_error"):
    """A fault of the server. The cause goes to the log, never to the client."""

    def __init__(self) -> None:
        super().__init__("The server failed to process this request; its log has the cause under this x-request-id.")
        self.in_shell = "the transcription failed; the cause is above"
