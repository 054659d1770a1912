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

    status: int = 500
    type: str = SERVER_ERROR
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = MappingProxyType({})  # of the response

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


class RequestError(WispError):
    """The request is at fault; sending it again fails again."""

    status = 400
    type = INVALID_REQUEST


class MissingField(RequestError):
    """A required form field is missing."""

    code = "missing_required_parameter"

    def __init__(self, param: str) -> None:
        super().__init__(f"The form field '{param}' is required.", param=param)


class UnknownField(RequestError):
    """A form field that this API does not have."""

    code = "unknown_parameter"

    def __init__(self, param: str) -> None:
        super().__init__(f"Unknown form field '{param}'.", param=param)


class InvalidValue(RequestError):
    """A field's value is invalid: not a number, out of range, given twice."""

    code = "invalid_value"


class UnsupportedValue(RequestError):
    """OpenAI's API has this value, but this model or version does not support it."""

    code = "unsupported_value"


class MalformedForm(RequestError):
    """The body is broken or of an unsupported type, or the body or query has too many fields."""

    code = "malformed_form"


class UnreadableAudio(RequestError):
    """The file is empty, corrupt or in an unsupported format."""

    code = "unreadable_audio"
    param = "file"


class AudioTooShort(RequestError):
    """The audio is too short to transcribe."""

    code = "audio_too_short"
    param = "file"

    def __init__(self, seconds: float, minimum_seconds: float) -> None:
        milliseconds = math.floor(seconds * 1000)  # rounding up could show a length that is enough
        super().__init__(f"The audio is {milliseconds / 1000:.3f} s long; it must be at least {minimum_seconds:g} s.")


class AudioTooLong(RequestError):
    """The decoded audio is longer than this server accepts (a small file can hold hours)."""

    status = 413
    code = "audio_too_long"
    param = "file"

    def __init__(self, seconds: float, maximum_seconds: float) -> None:
        super().__init__(f"The audio is longer than this server's limit of {maximum_seconds:g} s.")


class NothingToCommit(RequestError):
    """Live audio was committed before there was enough of it."""

    code = "input_audio_buffer_commit_empty"

    def __init__(self) -> None:
        super().__init__("The audio buffer has less than 100 ms of audio: append some before you commit it.")


class UploadTooLarge(RequestError):
    """The request body is over the size limit, by its Content-Length or by the bytes read."""

    status = 413
    code = "upload_too_large"
    param = "file"

    def __init__(self, n_bytes: int, maximum_bytes: int, *, announced: bool = False) -> None:
        found = f"its Content-Length is {n_bytes}" if announced else f"{n_bytes} bytes were read"
        super().__init__(f"The upload is over the limit of {maximum_bytes} bytes; {found}.")


class ModelNotFound(RequestError):
    """This server has no model of that name."""

    status = 404
    code = "model_not_found"
    param = "model"

    def __init__(self, name: str, available: Sequence[str]) -> None:
        has = f"; this server has: {', '.join(available)}" if available else ""
        super().__init__(f"The model '{name}' does not exist{has}.")


class ModelNotAllowed(RequestError):
    """The request's API key is for other models."""

    status = 403
    code = "model_not_allowed"
    param = "model"

    def __init__(self, name: str, allowed: Sequence[str]) -> None:
        super().__init__(f"This API key is not for the model '{name}'; it is for: {', '.join(allowed)}.")


class ModelTooLarge(RequestError):
    """A model that cannot be loaded here, however many others leave memory."""

    code = "model_too_large"
    param = "model"

    def __init__(self, name: str, n_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"The model '{name}' takes about {n_bytes / 1e6:.0f} MB of memory, and models may take "
            f"{limit_bytes / 1e6:.0f} MB here (WISP_MODEL_MEMORY)."
        )


class ModelInUse(RequestError):
    """A model that transcribes now cannot be unloaded or removed."""

    status = 409
    code = "model_in_use"

    def __init__(self, name: str, n_users: int) -> None:
        used = "1 transcription" if n_users == 1 else f"{n_users} transcriptions"
        super().__init__(f"The model '{name}' is in use by {used}; try again when they have ended.")


class ModelNotRemovable(RequestError):
    """A model whose files are not Wisp's to remove; the sentence says why."""

    status = 409
    code = "model_not_removable"


class ModelBeingRemoved(RequestError):
    """A model whose files are being removed at this moment."""

    status = 404
    code = "model_being_removed"
    param = "model"

    def __init__(self, name: str) -> None:
        super().__init__(f"The model '{name}' is being removed.")


class AdministrationRefused(RequestError):
    """A route that changes or shows which models are loaded, for a request that may not."""

    status = 403
    code = "administration_refused"

    def __init__(self, *, has_keys: bool) -> None:
        super().__init__(
            "This API key may not administer models: its line in the keys file needs the word admin."
            if has_keys
            else "Models are administered with an API key that may, and this server has no keys: give it a keys file, "
            "or set WISP_ALLOW_ADMIN_WITHOUT_KEY=yes."
        )


class UploadTooSlow(RequestError):
    """The request body arrived too slowly; `is_full`: too slowly for a server whose places are all taken.

    `idle_s`: the length of the pause, if that is the reason.
    """

    status = 408
    code = "upload_too_slow"
    # An OpenAI client would send it twice more, no faster. What still comes of it is not read.
    headers = MappingProxyType({"x-should-retry": "false", "Connection": "close"})

    def __init__(self, floor_s: float, bytes_per_s: int, *, is_full: bool = False, idle_s: float | None = None) -> None:
        if idle_s is not None:
            super().__init__(f"The upload paused for {idle_s:g} s.")
            return
        where = " for a server whose places are all taken" if is_full else ""
        super().__init__(
            f"The upload was too slow{where}: its time limit is {floor_s:g} s plus one second per {bytes_per_s} bytes."
        )


class InvalidApiKey(RequestError):
    """The request has no valid API key. The error never shows what it sent."""

    status = 401
    code = "invalid_api_key"
    headers = MappingProxyType({"WWW-Authenticate": "Bearer"})

    def __init__(self, *, is_absent: bool) -> None:
        sent = "No API key was sent" if is_absent else "The API key is not valid for this server"
        super().__init__(f"{sent}; send one in the header 'Authorization: Bearer KEY'.")


class ForeignOrigin(RequestError):
    """A web page of another origin that no setting allows."""

    status = 403
    code = "foreign_origin"

    def __init__(self, origin: str) -> None:
        shown = origin if len(origin) <= MAX_SHOWN else f"{origin[:MAX_SHOWN]}…"
        super().__init__(
            f"Pages from {shown!r} may not use this server. Its operator can allow them with WISP_CORS_ORIGINS, or add "
            "the server's own host name to WISP_HOSTS."
        )


class UnknownHost(RequestError):
    """The request's Host is not a name of this server."""

    status = 421
    code = "unknown_host"

    def __init__(self, name: str) -> None:
        shown = name if len(name) <= MAX_SHOWN else f"{name[:MAX_SHOWN]}…"
        super().__init__(f"This server is not called {shown!r}. If it should be, add the name to WISP_HOSTS.")


class RouteNotFound(RequestError):
    """The path does not exist."""

    status = 404
    code = "not_found"


class MethodNotAllowed(RequestError):
    """The path exists, but not for this HTTP method."""

    status = 405
    code = "method_not_allowed"


class UpgradeRequired(RequestError):
    """A plain request to a route that is a WebSocket."""

    status = 426
    code = "upgrade_required"
    headers = MappingProxyType({"Upgrade": "websocket"})

    def __init__(self) -> None:
        super().__init__("This route is a WebSocket: connect with ws:// or, through a TLS proxy, wss://.")


class MalformedEvent(RequestError):
    """A live session's client sent something other than an event of the protocol."""

    code = "malformed_event"


class ClientGone(RequestError):
    """The client closed its connection before the response was ready. Only logged, with nginx's status."""

    status = 499
    code = "client_closed_request"

    def __init__(self) -> None:
        super().__init__("The client closed the connection before the transcript was ready.")


class QueueFull(WispError):
    """The queue is full; `retry_after_s` is a whole number of seconds, at least 1."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"The server's queue is full; try again in {max(1, retry_after_s)} s.")
        self.retry_after_s = max(1, retry_after_s)
        self.headers = {"Retry-After": str(self.retry_after_s)}


class LiveSessionsFull(WispError):
    """As many live sessions are open as there may be, or this client has its share of them."""

    status = 429
    type = "rate_limit_error"
    code = "live_sessions_full"
    headers = MappingProxyType({"Retry-After": "5"})

    def __init__(self) -> None:
        super().__init__("All live sessions are taken (WISP_LIVE_SESSIONS); try again later.")


class ClientSecretsFull(WispError):
    """As many client secrets are valid as there may be, or this client has its share of them."""

    status = 429
    type = "rate_limit_error"
    code = "client_secrets_full"
    headers = MappingProxyType({"Retry-After": "60"})

    def __init__(self) -> None:
        super().__init__("Too many client secrets are valid (WISP_LIVE_SECRETS); try again when some have expired.")


class SetAside(WispError):
    """A job that turned out long gives up its place for now. Internal: the job starts again later."""

    def __init__(self) -> None:
        super().__init__("The job waits for a place among the long ones.")


class Overloaded(WispError):
    """The system is out of open files, threads or address space."""

    status = 503
    code = "overloaded"
    headers = MappingProxyType({"Retry-After": "5"})

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


class NotReady(WispError):
    """The model is loading or failed to load, or the server is stopping."""

    status = 503
    code = "not_ready"
    headers = MappingProxyType({"Retry-After": "1"})


class ModelBroken(WispError):
    """A model other than the default cannot be loaded. The reason goes to the log, never to the client."""

    status = 503
    code = "model_broken"
    param = "model"
    headers = MappingProxyType({"x-should-retry": "false"})

    def __init__(self, name: str) -> None:
        super().__init__(f"The model '{name}' cannot be loaded; the server's log says why.")


class ModelBeingPulled(WispError):
    """A model that is on its way from the hub."""

    status = 503
    code = "model_being_pulled"
    param = "model"
    headers = MappingProxyType({"Retry-After": "10"})

    def __init__(self, name: str, share: float) -> None:
        super().__init__(f"The model '{name}' is being pulled: {100 * share:.0f} % of it is here.")


class PullFailed(WispError):
    """A model that a request wanted pulled cannot be; the sentence says why."""

    status = 502
    code = "pull_failed"


class DeviceLost(WispError):
    """The GPU failed during the request, or has failed before and is not back yet.

    `retry_after_s`: seconds until it may be opened again, rounded up; at least 1.
    """

    status = 503
    code = "device_lost"

    def __init__(self, retry_after_s: float = 1.0) -> None:
        super().__init__("The GPU has failed; the next request opens it again.")
        self.retry_after_s = max(1, math.ceil(retry_after_s))
        self.headers = {"Retry-After": str(self.retry_after_s)}


class NoSpace(WispError):
    """The disk for uploads is full."""

    status = 503
    code = "no_space"
    headers = MappingProxyType({"Retry-After": "10"})

    def __init__(self) -> None:
        super().__init__("The server has no disk space for this upload now; try again later.")


class DecoderLost(WispError):
    """The system ended the process that decoded the file, or none could be started."""

    status = 503
    code = "decoder_lost"
    headers = MappingProxyType({"Retry-After": "10"})

    def __init__(self) -> None:
        super().__init__("The server had too little memory or too few processes to decode the file; try again later.")


class DeadlineExceeded(WispError):
    """The transcription exceeded the time limit for its audio."""

    status = 503
    code = "deadline_exceeded"
    # An OpenAI client would send the whole file twice more and wait as long each time.
    headers = MappingProxyType({"x-should-retry": "false"})

    def __init__(self, deadline_s: float) -> None:
        super().__init__(f"The transcription was stopped at its time limit of {deadline_s:.0f} s.")


class InternalError(WispError):
    """A fault of the server. The cause goes to the log, never to the client."""

    code = "internal_error"

    def __init__(self) -> None:
        super().__init__("The server failed to process this request; its log has the cause under this x-request-id.")
        self.in_shell = "the transcription failed; the cause is above"
