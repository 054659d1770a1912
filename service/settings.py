"""All settings in one table: default, unit, one sentence. Read once, from flags, else from WISP_* variables."""

import dataclasses
import logging
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRELOAD_VARIABLE = "WASMEDGE_WASINN_PRELOAD"  # WasmEdge's name, so that the demo's command line works unchanged
KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
# A star matches a host's whole first name (if more names follow), a whole port, or everything.
ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://(\*\.[^/\s*:]+|[^/\s*]+)(:\*|:\d+)?")


@dataclass(frozen=True)
class Setting:
    """One row of the table. `minimum` and `maximum` are inclusive and for numbers only; `choices` is for words only."""

    name: str  # the field of Settings
    default: str | int | float
    help: str
    unit: str = ""
    minimum: float = 0
    maximum: float = math.inf
    choices: tuple[str, ...] = ()
    variable: str = ""  # the environment variable, if it isn't WISP_NAME
    flag: str = ""  # the command line flag; empty if there is none
    is_list: bool = False  # wisp serve takes the flag several times

    def parse(self, text: str, source: str) -> str | int | float:
        """Convert the user's text to the default's type. Raises ValueError with one sentence that names `source`."""
        if isinstance(self.default, str):
            if self.choices and text not in self.choices:
                raise ValueError(f"{source} is '{text}'; it must be one of {', '.join(self.choices)}.")
            return text
        kind, word = (int, "a whole number") if isinstance(self.default, int) else (float, "a number")
        try:
            value = kind(text)
        except ValueError:
            raise ValueError(f"{source} is '{text}'; it must be {word}.") from None
        if not (math.isfinite(value) and self.minimum <= value <= self.maximum):
            bounds = f"at least {self.minimum:.15g}" + (
                f" and at most {self.maximum:.15g}" if self.maximum < math.inf else ""
            )
            raise ValueError(f"{source} is {text}; it must be {word}, {bounds}.")
        return value


def _field(default: Any, help: str, *, is_secret: bool = False, **row: Any) -> Any:
    return dataclasses.field(default=default, repr=not is_secret, metadata={"help": help, **row})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings' values. Each field defines a setting; TABLE has the same as rows."""

    host: str = _field("127.0.0.1", "Address to listen on; 0.0.0.0 admits other machines")
    port: int = _field(8080, "Port to listen on; 0 takes a free one", maximum=65535)
    api_keys_file: str = _field("", "File of API keys, one per line; once there is a key, requests must carry one")
    api_keys: str = _field(
        "",
        "API keys, comma-separated; a file is safer, because other processes of the user can read variables",
        is_secret=True,
        flag=False,
    )
    allow_public_without_key: str = _field(
        "no",
        "Whether to serve without API keys on an address that other machines can reach",
        choices=("no", "yes"),
    )
    published: str = _field(
        "",
        "Address and port where a container's port is published, such as 127.0.0.1:8080; decides who can reach Wisp",
        flag=False,
    )
    cors_origins: str = _field(
        "",
        "Origins whose web pages may use this server, such as https://a.example, comma-separated, or *; "
        "https://*.a.example matches any one name before .a.example, http://localhost:* any port",
    )
    hosts: str = _field(
        "host.docker.internal,host.containers.internal",
        "Host names of this server, comma-separated, such as wisp.example or *.example. Pages from them may use the "
        "server. If only this machine can reach it, other Host headers are rejected, except addresses, localhost and "
        "names without a dot",
    )
    model: str = _field(
        "",
        "Models to serve, comma-separated: names, folders or weights files. The first is the default, for requests "
        "that name none; empty means tiny.en. All other models found here are served too",
        is_list=True,
    )
    target: str = _field(
        "auto",
        "Where kernels run; auto uses a hardware GPU if there is one, else the CPU",
        choices=("auto", "gpu", "cpu"),
    )
    models_dir: str = _field("~/.local/share/wisp/models", "Folder of installed models, one subfolder each")
    hub: str = _field(
        "https://huggingface.co",
        "Hub for wisp models pull: Hugging Face's, or a mirror with the same API",
        variable="HF_ENDPOINT",
        flag=False,
    )
    model_memory: int = _field(
        0,
        "Memory for loaded models: the least recently used idle one is unloaded to make room. 0 means three quarters "
        "of the memory of the machine or container, or of the GPU",
        unit="bytes",
    )
    route_languages: str = _field(
        "no",
        "Use a model that knows the request's language when the default doesn't and the request names no other",
        choices=("no", "yes"),
    )
    allow_admin_without_key: str = _field(
        "no",
        "Let every request pull, unload and remove models on a server without API keys",
        choices=("no", "yes"),
    )
    aliases: str = _field(
        "whisper-1,whisper,whisper-*,gpt-transcribe,gpt-*-transcribe*,gpt-live-transcribe,gpt-realtime-whisper,"
        "gpt-realtime*,gpt-*-realtime*",
        "Other names of the default model, comma-separated; * matches any letters",
    )
    unknown_fields: str = _field(
        "warn",
        "What to do with form fields that OpenAI's API doesn't have: warn maps those of similar APIs and ignores "
        "others with a Wisp-Warning header, refuse rejects all",
        choices=("warn", "refuse"),
    )
    max_upload_bytes: int = _field(
        GIB,
        "Largest file accepted; OpenAI's limit is 25 MB, and an hour of CD-quality stereo WAV has 635 MB",
        unit="bytes",
        minimum=1,
    )
    upload_floor_s: float = _field(60.0, "Base time limit of an upload", unit="seconds", minimum=1)
    upload_bytes_per_s: int = _field(
        4096, "Each N bytes received adds one second to the upload's time limit", unit="bytes", minimum=1
    )
    upload_idle_s: float = _field(30.0, "Longest pause in an upload; a longer one gets 408", unit="seconds", minimum=1)
    spool_bytes: int = _field(
        0,
        "Disk space for all uploads, kept until transcribed; 0 means three quarters of the free space at start",
        unit="bytes",
    )
    max_audio_s: float = _field(7200.0, "Longest audio accepted, after decoding", unit="seconds", minimum=1)
    beam_size: int = _field(
        0,
        "Beams at temperature 0; 1 is greedy; 0 means the number in the model's generation_config.json, else 1. The "
        "reference's command line uses 5: fewer errors, more time",
        unit="beams",
        maximum=16,
    )
    vad: str = _field(
        "skip",
        "How to handle silence: skip drops windows without speech, found by voice-activity detection; cut transcribes "
        "only the stretches of speech, as chunking_strategy=auto does; off leaves it to the model",
        choices=("skip", "cut", "off"),
    )
    live_step_s: float = _field(
        1.0,
        "New live speech between two passes of the model; more under load",
        unit="seconds",
        minimum=0.2,
        maximum=10.0,
    )
    workers: int = _field(
        0,
        "Transcriptions that compute in parallel, one window of audio per turn; 0 means 16 on a GPU and, on the CPU, "
        "one per 4 cores but at least 2, and no more than WISP_OPEN_JOBS",
        unit="transcriptions",
    )
    open_jobs: int = _field(
        16,
        "Transcriptions in progress, which take turns to compute; each has a thread and some memory. WISP_WORKERS if "
        "that is more. Shorter recordings may exceed it by a quarter, at least 3",
        unit="transcriptions",
        minimum=1,
    )
    queue_length: int = _field(
        128,
        "Requests that may queue beyond the open jobs, waiting or uploading; more get 429. Clients with few requests "
        "(by key or address) may exceed it by a quarter",
        unit="requests",
    )
    live_sessions: int = _field(
        32,
        "Live sessions at once; more get 429. Clients with few of them (by key or address) may exceed it by a quarter",
        unit="sessions",
        minimum=1,
    )
    live_idle_s: float = _field(
        300.0, "Time without any event from its client after which a live session ends", unit="seconds", minimum=1
    )
    live_max_s: float = _field(3600.0, "Longest live session; its last words are still sent", unit="seconds", minimum=1)
    live_buffer_s: float = _field(
        30.0,
        "Live audio of a session that may wait to be transcribed; beyond it the server reads no more from the client",
        unit="seconds",
        minimum=1,
    )
    live_append_bytes: int = _field(
        15 * MIB, "Largest piece of live audio in one event; OpenAI's limit too", unit="bytes", minimum=KIB
    )
    live_secrets: int = _field(1000, "Client secrets that are valid at once; more get 429", unit="secrets", minimum=1)
    wyoming: int = _field(
        0, "Port for Home Assistant's Wyoming protocol, which has no API keys, such as 10300; 0 is off", maximum=65535
    )
    wyoming_published: str = _field(
        "",
        "Address and port where a container's Wyoming port is published, such as 127.0.0.1:10300; decides who can "
        "reach it",
        flag=False,
    )
    max_connections: int = _field(
        2048,
        "Open connections; the longest idle one makes room for a new one. Fewer if the limit on open files is low",
        unit="connections",
        minimum=1,
    )
    deadline_floor_s: float = _field(60.0, "Base time limit of a transcription", unit="seconds", minimum=1)
    deadline_factor: float = _field(
        10.0, "Each second of audio adds N seconds to the transcription's time limit", unit="seconds per second"
    )
    grace_s: float = _field(20.0, "Time for running requests to finish when the server stops", unit="seconds")
    guest_memory_bytes: int = _field(256 * MIB, "Memory limit of one guest instance", unit="bytes", minimum=MIB)
    probe_after_s: float = _field(
        60.0, "Time that a successful transcription keeps /readyz at 200 without a probe", unit="seconds"
    )
    probe_limit_s: float = _field(
        10.0, "Time limit of that probe, a short transcription; after it /readyz is 503", unit="seconds"
    )
    idle_unload_s: float = _field(
        0.0,
        "Idle time after which a model is unloaded until the next request; 0 never unloads it",
        unit="seconds",
    )
    metrics: str = _field(
        "guarded",
        "Access to /metrics: guarded needs an API key if the server has any, public needs none, off removes the route",
        choices=("guarded", "public", "off"),
    )
    log_level: str = _field("info", "Minimum log level", choices=("debug", "info", "warning", "error"))
    log_format: str = _field("console", "Format of the server's log, on stderr", choices=("console", "json"))
    tracing: str = _field(
        "off",
        "OpenTelemetry traces; otlp exports them as the OTEL_… variables say and needs the extra [otel]",
        choices=("off", "otlp"),
    )
    preload: str = _field(
        "",
        "WasmEdge's preload string, NAME:Burn:GPU|CPU:WEIGHTS:CONFIG:TOKENIZER:LANGUAGE; --model overrides it",
        variable=PRELOAD_VARIABLE,
        flag=False,
    )

    def n_open(self) -> int:
        """Maximum transcriptions in progress: open_jobs, but no fewer than compute in parallel."""
        return max(self.open_jobs, self.workers)

    def n_places(self) -> int:
        """Maximum concurrent requests, each counted from the first byte of its upload to its transcript."""
        return self.n_open() + self.queue_length

    def live_message_bytes(self) -> int:
        """The largest message of a live session: `live_append_bytes` as base64, and what is around it."""
        return self.live_append_bytes * 4 // 3 + 64 * KIB

    def models(self) -> list[str]:
        """The entries of `model`. The path of an existing file may contain commas."""
        if os.path.lexists(os.path.expanduser(self.model)):  # noqa: PTH111 (Path's own raises without a home)
            return [self.model]
        return [name.strip() for name in self.model.split(",") if name.strip()]

    def deadline_s(self, audio_s: float) -> float:
        """The most time that a transcription of so much audio may work."""
        return self.deadline_floor_s + self.deadline_factor * audio_s

    def models_path(self) -> Path:
        """The models' folder with `~` expanded, if the user has a home."""
        return Path(os.path.expanduser(self.models_dir))  # noqa: PTH111 (Path.expanduser raises without a home)

    def alias_names(self) -> frozenset[str]:
        """The other names of the default model."""
        return frozenset(name.strip() for name in self.aliases.split(",") if name.strip())

    def cors_origin_list(self) -> list[str]:
        """The origins whose pages may use this server; `*` means any."""
        return [origin.strip().removesuffix("/") for origin in self.cors_origins.split(",") if origin.strip()]

    def host_list(self) -> list[str]:
        """The names of `hosts`."""
        return [name.strip().lower() for name in self.hosts.split(",") if name.strip()]

    def cors_origin_pattern(self) -> str:
        """A regular expression that matches exactly the configured origins, for `re.fullmatch`."""
        return "|".join(_origin_pattern(origin) for origin in self.cors_origin_list())

    def logging_level(self) -> int:
        """`log_level` as a number of the logging module."""
        return logging.getLevelNamesMapping()[self.log_level.upper()]


def _origin_pattern(origin: str) -> str:
    """`*` matches one name of a host, or a port; alone, any origin."""
    if origin == "*":
        return ".*"
    pattern = re.escape(origin.lower())
    if pattern.endswith(r":\*"):
        pattern = pattern.removesuffix(r":\*") + r"(:\d+)?"
    return pattern.replace(r"\*", "[a-z0-9-]+")


def _row(field: "dataclasses.Field[Any]") -> Setting:
    metadata = dict(field.metadata)
    flag = f"--{field.name.replace('_', '-')}" if metadata.pop("flag", True) else ""
    metadata.setdefault("variable", f"WISP_{field.name.upper()}")
    default: Any = field.default
    return Setting(field.name, default, flag=flag, **metadata)


TABLE: tuple[Setting, ...] = tuple(_row(field) for field in dataclasses.fields(Settings))


def read_settings(environment: Mapping[str, str], flags: Mapping[str, str | None] | None = None) -> Settings:
    """Read settings from flags (field name → text, None if not given), else the environment, else the defaults.

    An empty variable counts as unset, because that is how compose files pass unset variables.
    Raises ValueError with one sentence for a bad value.
    """
    values: dict[str, Any] = {}
    for setting in TABLE:
        flag = (flags or {}).get(setting.name)
        if flag is not None:
            values[setting.name] = setting.parse(flag, setting.flag)
        elif text := environment.get(setting.variable):
            values[setting.name] = setting.parse(text, setting.variable)
    settings = Settings(**values)
    for origin in settings.cors_origin_list():
        if not ORIGIN.fullmatch(origin):
            raise ValueError(
                f"'{origin}' isn't an origin; WISP_CORS_ORIGINS takes * or scheme://host[:port], with * for "
                "the host's first name, as in https://*.example.com, or for the port."
            )
    return settings


def markdown_table() -> str:
    """The settings as the table in docs/settings.md."""
    lines = ["| flag | variable | default | unit | meaning |", "|---|---|---|---|---|"]
    for s in TABLE:
        meaning = s.help + (f" ({', '.join(s.choices)})" if s.choices else "")
        default = f"`{s.default}`" if s.default != "" else "empty"
        flag = f"`{s.flag}`" if s.flag else ""
        lines.append(f"| {flag} | `{s.variable}` | {default} | {s.unit} | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"
