"""Every error a user can meet: class, HTTP status, code, one sentence, and OpenAI's envelope around it."""

import errno
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)  # files, threads or processes, memory
MAX_SHOWN = 100  # characters of what a client sent


class WispError(Exception):
    """What Wisp tells a user in one sentence. `str(error)` is that sentence; the class says how HTTP answers it."""

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
    """The service or the command cannot start: a setting, a device or a file says no."""


class ModelError(StartError):
    """A model asked for by name or path is missing, incomplete or broken; the sentence says what to do."""


class HubError(StartError):
    """A model cannot be fetched from the hub; the sentence says why and what to do."""


class DeviceUnavailable(StartError):
    """The target asked for has no device on this machine."""


class RequestError(WispError):
    """The request is at fault; sending the same one again gives the same answer."""

    status = 400
    type = INVALID_REQUEST


class MissingField(RequestError):
    """A required form field is absent."""

    code = "missing_required_parameter"

    def __init__(self, param: str) -> None:
        super().__init__(f"The form field '{param}' is required.", param=param)


class UnknownField(RequestError):
    """A form field that this API does not have."""

    code = "unknown_parameter"

    def __init__(self, param: str) -> None:
        super().__init__(f"Unknown form field '{param}'.", param=param)


class InvalidValue(RequestError):
    """A field's value cannot be read: not a number, out of its range, given twice."""

    code = "invalid_value"


class UnsupportedValue(RequestError):
    """A field's value is known to the API but not given by this model or this version."""

    code = "unsupported_value"


class MalformedForm(RequestError):
    """The body is of no type that is read here, or broken; or it or the address has too many fields."""

    code = "malformed_form"


class UnreadableAudio(RequestError):
    """The file is empty, corrupt, or of a format that no decoder here reads."""

    code = "unreadable_audio"
    param = "file"


class AudioTooShort(RequestError):
    """Less sound than a transcript can be made of."""

    code = "audio_too_short"
    param = "file"

    def __init__(self, seconds: float, minimum_seconds: float) -> None:
        milliseconds = math.floor(seconds * 1000)  # rounded up, the audio could seem long enough
        super().__init__(f"The audio is {milliseconds / 1000:.3f} s long; at least {minimum_seconds:g} s is needed.")


class AudioTooLong(RequestError):
    """More sound than this server accepts, as decoded (a small file can hold hours)."""

    status = 413
    code = "audio_too_long"
    param = "file"

    def __init__(self, seconds: float, maximum_seconds: float) -> None:
        super().__init__(f"The audio is longer than the {maximum_seconds:g} s accepted here.")


class UploadTooLarge(RequestError):
    """The request body is over the cap, as its Content-Length announces or as found on reading that far."""

    status = 413
    code = "upload_too_large"
    param = "file"

    def __init__(self, n_bytes: int, maximum_bytes: int, *, announced: bool = False) -> None:
        found = f"it announces {n_bytes} bytes" if announced else f"{n_bytes} bytes were read"
        super().__init__(f"The upload is over the cap of {maximum_bytes} bytes; {found}.")


class ModelNotFound(RequestError):
    """No model of that name is served here."""

    status = 404
    code = "model_not_found"
    param = "model"

    def __init__(self, name: str, available: Sequence[str]) -> None:
        super().__init__(f"The model '{name}' does not exist here; this server has: {', '.join(available) or 'none'}.")


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
    """The request body came more slowly than the server waits for; `is_full`: than a full server waits for.

    `idle_s`: how long nothing of it came, where that is the reason.
    """

    status = 408
    code = "upload_too_slow"
    # An OpenAI client would send it twice more, no faster. What still comes of it is not read.
    headers = MappingProxyType({"x-should-retry": "false", "Connection": "close"})

    def __init__(self, floor_s: float, bytes_per_s: int, *, is_full: bool = False, idle_s: float | None = None) -> None:
        if idle_s is not None:
            super().__init__(f"Nothing of the request's body came for {idle_s:g} s.")
            return
        where = " for a server that is full" if is_full else ""
        super().__init__(
            f"The request's body came too slowly{where}: it is given {floor_s:g} s and one more for every "
            f"{bytes_per_s} bytes."
        )


class InvalidApiKey(RequestError):
    """The request carries no API key of this server's. What it carries is told to nobody."""

    status = 401
    code = "invalid_api_key"
    headers = MappingProxyType({"WWW-Authenticate": "Bearer"})

    def __init__(self, *, is_absent: bool) -> None:
        sent = "No API key was sent" if is_absent else "What was sent is not an API key of this server"
        super().__init__(f"{sent}; send one in the header 'Authorization: Bearer KEY'.")


class ForeignOrigin(RequestError):
    """A web page of another origin, which no setting allows."""

    status = 403
    code = "foreign_origin"

    def __init__(self, origin: str) -> None:
        shown = origin if len(origin) <= MAX_SHOWN else f"{origin[:MAX_SHOWN]}…"
        super().__init__(
            f"Pages of {shown!r} may not use this server: its operator can allow them with WISP_CORS_ORIGINS, or name "
            "the server's own host in WISP_HOSTS."
        )


class UnknownHost(RequestError):
    """The request is for a name that is not this server's."""

    status = 421
    code = "unknown_host"

    def __init__(self, name: str) -> None:
        shown = name if len(name) <= MAX_SHOWN else f"{name[:MAX_SHOWN]}…"
        super().__init__(f"This server is not called {shown!r}: if it should be, add the name to WISP_HOSTS.")


class RouteNotFound(RequestError):
    """No such path."""

    status = 404
    code = "not_found"


class MethodNotAllowed(RequestError):
    """The path exists, but not for this HTTP method."""

    status = 405
    code = "method_not_allowed"


class ClientGone(RequestError):
    """The client closed its connection before the answer was ready. Logged with nginx's number; nobody receives it."""

    status = 499
    code = "client_closed_request"

    def __init__(self) -> None:
        super().__init__("The client closed the connection before the transcript was ready.")


class QueueFull(WispError):
    """More requests wait than the queue holds; `retry_after_s` is a whole number of seconds, at least 1."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"The server's queue is full; try again in {max(1, retry_after_s)} s.")
        self.retry_after_s = max(1, retry_after_s)
        self.headers = {"Retry-After": str(self.retry_after_s)}


class SetAside(WispError):
    """A job that turned out long gives its place up for now. No user meets it: the job begins again."""

    def __init__(self) -> None:
        super().__init__("The job waits for a long one's place.")


class Overloaded(WispError):
    """The system has no open files, threads or address space left for the request."""

    status = 503
    code = "overloaded"
    headers = MappingProxyType({"Retry-After": "5"})

    def __init__(self) -> None:
        super().__init__("The server is overloaded at the moment; try again later.")

    @staticmethod
    def is_meant_by(error: BaseException | None) -> bool:
        """Whether an error says, by itself or by what caused it, that the system has no more to give."""
        while error is not None:
            if isinstance(error, OSError) and error.errno in EXHAUSTED:
                return True
            error = error.__cause__ or error.__context__
        return False


class NotReady(WispError):
    """The model is still loading or could not be loaded, or the server is stopping."""

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
    """The GPU failed while it worked on the request, or has failed before and is not back yet.

    `retry_after_s`: after how many seconds it may be opened anew, rounded up; at least 1.
    """

    status = 503
    code = "device_lost"

    def __init__(self, retry_after_s: float = 1.0) -> None:
        super().__init__("The GPU has failed; the next try opens it anew.")
        self.retry_after_s = max(1, math.ceil(retry_after_s))
        self.headers = {"Retry-After": str(self.retry_after_s)}


class NoSpace(WispError):
    """The disk that uploads lie on while they are read is full."""

    status = 503
    code = "no_space"
    headers = MappingProxyType({"Retry-After": "10"})

    def __init__(self) -> None:
        super().__init__("The server has no room for this upload at the moment; try again later.")


class DecoderLost(WispError):
    """The process that decoded the file was ended by the system, or none could be started."""

    status = 503
    code = "decoder_lost"
    headers = MappingProxyType({"Retry-After": "10"})

    def __init__(self) -> None:
        super().__init__("The server was too short of memory or processes to decode the file; try again later.")


class DeadlineExceeded(WispError):
    """The transcription ran past the time that its length of audio is given."""

    status = 503
    code = "deadline_exceeded"
    # An OpenAI client would send the whole file twice more and wait as long each time.
    headers = MappingProxyType({"x-should-retry": "false"})

    def __init__(self, deadline_s: float) -> None:
        super().__init__(f"The transcription did not finish within its {deadline_s:.0f} s and was stopped.")


class InternalError(WispError):
    """Something of ours broke. The reason goes to the log, never to the client."""

    code = "internal_error"

    def __init__(self) -> None:
        super().__init__("The server failed to process this request; its log says why, under this x-request-id.")
        self.in_shell = "the transcription failed, for the reason above"
