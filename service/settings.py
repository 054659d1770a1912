"""Every setting in one table: a default, a unit, one sentence. Read once, from flags, else WISP_* variables."""

import dataclasses
import logging
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRELOAD_VARIABLE = "WASMEDGE_WASINN_PRELOAD"  # WasmEdge's own name, so that the demo's command line works unchanged
KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
# A star is a whole first name of a host with others after it, or a whole port, or everything.
ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://(\*\.[^/\s*:]+|[^/\s*]+)(:\*|:\d+)?")


@dataclass(frozen=True)
class Setting:
    """One row of the table. `minimum` and `maximum` are inclusive and only for numbers; `choices` only for words."""

    name: str  # the field of Settings
    default: str | int | float
    help: str
    unit: str = ""
    minimum: float = 0
    maximum: float = math.inf
    choices: tuple[str, ...] = ()
    variable: str = ""  # the environment variable, when it is not WISP_NAME
    flag: str = ""  # the command line flag; empty when there is none
    is_list: bool = False  # wisp serve takes the flag several times

    def parse(self, text: str, source: str) -> str | int | float:
        """The value a user wrote, in the default's type. Raises ValueError with one sentence naming `source`."""
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
    """The values in force. The fields are the table; TABLE is the same as rows."""

    host: str = _field("127.0.0.1", "Address to listen on; 0.0.0.0 lets other machines in")
    port: int = _field(8080, "Port to listen on; 0 takes a free one", maximum=65535)
    api_keys_file: str = _field("", "File of API keys, one a line; with any key there is, requests must carry one")
    api_keys: str = _field(
        "",
        "API keys, comma-separated; a file is safer, as processes of the same user can read a variable",
        is_secret=True,
        flag=False,
    )
    allow_public_without_key: str = _field(
        "no",
        "Whether to serve without any key on an address that other machines reach",
        choices=("no", "yes"),
    )
    published: str = _field(
        "",
        "Where a container's port is published, as 127.0.0.1:8080: by this, if set, Wisp judges who reaches it",
        flag=False,
    )
    cors_origins: str = _field(
        "",
        "Web pages of other servers that may use this one: origins such as https://a.example, comma-separated, or *; "
        "https://*.a.example stands for any one name before .a.example, http://localhost:* for any port",
    )
    hosts: str = _field(
        "host.docker.internal,host.containers.internal",
        "Names that clients call this server by, comma-separated, such as wisp.example or *.example: its pages' "
        "origins and, where only this machine reaches it, the only Host headers accepted, with addresses, localhost "
        "and names without a dot",
    )
    model: str = _field(
        "",
        "Models to serve, comma-separated: names, folders or weights files. The first is the default, of requests that "
        "name none; empty takes tiny.en. All others that are found here are served too",
        is_list=True,
    )
    target: str = _field(
        "auto",
        "Where kernels run; auto takes a hardware GPU if there is one, else the CPU",
        choices=("auto", "gpu", "cpu"),
    )
    models_dir: str = _field("~/.local/share/wisp/models", "Folder that models are installed in, one folder each")
    hub: str = _field(
        "https://huggingface.co",
        "Hub that wisp models pull fetches from: Hugging Face's, or a mirror that answers as it does",
        variable="HF_ENDPOINT",
        flag=False,
    )
    model_memory: int = _field(
        0,
        "Memory that loaded models may take together: the least recently used idle one leaves for another. 0 takes "
        "three quarters of the machine's or the container's memory, on a GPU of the GPU's",
        unit="bytes",
    )
    route_languages: str = _field(
        "no",
        "Whether a request in a language that the default model doesn't know, and that names no other, gets a model "
        "that knows it",
        choices=("no", "yes"),
    )
    allow_admin_without_key: str = _field(
        "no",
        "Whether models may be pulled, unloaded and removed by requests where there are no API keys",
        choices=("no", "yes"),
    )
    aliases: str = _field(
        "whisper-1,whisper,whisper-*,gpt-transcribe,gpt-*-transcribe*,gpt-live-transcribe,gpt-realtime-whisper",
        "Other names of the default model, comma-separated; * stands for any letters",
    )
    unknown_fields: str = _field(
        "warn",
        "Form fields that OpenAI's API doesn't have: honour or ignore them, the latter with a Wisp-Warning header, or "
        "refuse them",
        choices=("warn", "refuse"),
    )
    max_upload_bytes: int = _field(
        GIB,
        "Largest file accepted; OpenAI stops at 25 MB, an hour of CD-quality stereo WAV has 635 MB",
        unit="bytes",
        minimum=1,
    )
    upload_floor_s: float = _field(60.0, "Time every upload is given", unit="seconds", minimum=1)
    upload_bytes_per_s: int = _field(
        4096, "Each N bytes received adds one second to the upload's time limit", unit="bytes", minimum=1
    )
    upload_idle_s: float = _field(
        30.0, "Longest pause in an upload, after which it is answered 408", unit="seconds", minimum=1
    )
    spool_bytes: int = _field(
        0,
        "Room for all uploads together, on disk until transcribed; 0 takes three quarters of what is free at start",
        unit="bytes",
    )
    max_audio_s: float = _field(7200.0, "Longest audio accepted, as decoded", unit="seconds", minimum=1)
    beam_size: int = _field(
        0,
        "Beams that decoding searches with at temperature 0, 1 being greedy; 0 takes what the model's "
        "generation_config.json says, else 1. The reference's command line takes 5: fewer errors, more time",
        unit="beams",
        maximum=16,
    )
    vad: str = _field(
        "skip",
        "What becomes of silence: skip passes over windows in which voice-activity detection hears no speech, cut "
        "transcribes stretches of speech only, as chunking_strategy=auto does, off leaves all to the model",
        choices=("skip", "cut", "off"),
    )
    workers: int = _field(
        0,
        "Transcriptions that compute at once, a window of audio in each turn; 0 takes 16 on a GPU, 2 on the CPU, or "
        "one for each 4 of its cores where those are more, but no more than WISP_OPEN_JOBS",
        unit="transcriptions",
    )
    open_jobs: int = _field(
        16,
        "Transcriptions under way, which take turns at that: a thread and some memory each; WISP_WORKERS where more. A "
        "quarter more, at least 3, is for shorter ones than those",
        unit="transcriptions",
        minimum=1,
    )
    queue_length: int = _field(
        128,
        "Requests that may queue beyond the open jobs, waiting or being uploaded; more get 429. A quarter more is for "
        "clients, by key or address, that hold few",
        unit="requests",
    )
    max_connections: int = _field(
        2048,
        "Connections kept open; the longest idle is closed for one more. Fewer where the limit of open files is low",
        unit="connections",
        minimum=1,
    )
    deadline_floor_s: float = _field(60.0, "Time every transcription is given", unit="seconds", minimum=1)
    deadline_factor: float = _field(
        10.0, "Time it is given on top, for every second of its audio", unit="seconds per second"
    )
    grace_s: float = _field(
        20.0, "Time that requests under way are given to end when the server is told to stop", unit="seconds"
    )
    guest_memory_bytes: int = _field(256 * MIB, "Memory one guest instance may take", unit="bytes", minimum=MIB)
    probe_after_s: float = _field(
        60.0, "How long a transcription that succeeded is proof to /readyz, before it asks for another", unit="seconds"
    )
    probe_limit_s: float = _field(
        10.0, "Time that such a transcription of its own may take, before /readyz says no", unit="seconds"
    )
    idle_unload_s: float = _field(
        0.0,
        "Time without a transcription after which a model leaves memory, until the next one; 0 keeps it there",
        unit="seconds",
    )
    metrics: str = _field(
        "guarded",
        "Who may read /metrics: guarded takes an API key where there are any, public takes none, off has no such route",
        choices=("guarded", "public", "off"),
    )
    log_level: str = _field("info", "Minimum log level", choices=("debug", "info", "warning", "error"))
    log_format: str = _field("console", "How the server writes its log, on stderr", choices=("console", "json"))
    tracing: str = _field(
        "off",
        "Where OpenTelemetry's traces go; otlp needs the extra [otel] and goes by OTEL_… variables",
        choices=("off", "otlp"),
    )
    preload: str = _field(
        "",
        "WasmEdge's preload string, NAME:Burn:GPU|CPU:WEIGHTS:CONFIG:TOKENIZER:LANGUAGE; --model goes before it",
        variable=PRELOAD_VARIABLE,
        flag=False,
    )

    def n_open(self) -> int:
        """Transcriptions that may be under way: all that compute at once are."""
        return max(self.open_jobs, self.workers)

    def n_places(self) -> int:
        """The most requests at once, each from the first byte of its upload to its transcript."""
        return self.n_open() + self.queue_length

    def models(self) -> list[str]:
        """What `model` names. A path that is there may have commas in it."""
        if os.path.lexists(os.path.expanduser(self.model)):  # noqa: PTH111 (Path's own raises without a home)
            return [self.model]
        return [name.strip() for name in self.model.split(",") if name.strip()]

    def deadline_s(self, audio_s: float) -> float:
        """The most time that a transcription of so much audio may work."""
        return self.deadline_floor_s + self.deadline_factor * audio_s

    def models_path(self) -> Path:
        """The models' folder with `~` resolved, where there is a home."""
        return Path(os.path.expanduser(self.models_dir))  # noqa: PTH111 (Path's own raises for a user without a home)

    def alias_names(self) -> frozenset[str]:
        """The other names of the served model."""
        return frozenset(name.strip() for name in self.aliases.split(",") if name.strip())

    def cors_origin_list(self) -> list[str]:
        """The origins whose pages may use this server; `*` is any."""
        return [origin.strip().removesuffix("/") for origin in self.cors_origins.split(",") if origin.strip()]

    def host_list(self) -> list[str]:
        """The names of `hosts`."""
        return [name.strip().lower() for name in self.hosts.split(",") if name.strip()]

    def cors_origin_pattern(self) -> str:
        """A regular expression of exactly the configured origins, for `re.fullmatch`."""
        return "|".join(_origin_pattern(origin) for origin in self.cors_origin_list())

    def logging_level(self) -> int:
        """`log_level` as the logging module's number."""
        return logging.getLevelNamesMapping()[self.log_level.upper()]


def _origin_pattern(origin: str) -> str:
    """`*` stands for one name of a host, or for a port; alone, for any origin."""
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
    """Settings from flags (field name → text, None when not given), else the environment, else the defaults.

    An empty variable counts as unset, as compose files write those they leave out.
    Raises ValueError with one sentence when a value cannot be read.
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
                f"'{origin}' is no origin; WISP_CORS_ORIGINS takes * or scheme://host[:port], with * for "
                "the host's first name, as in https://*.example.com, or for the port."
            )
    return settings


def markdown_table() -> str:
    """The table as docs/settings.md shows it."""
    lines = ["| flag | variable | default | unit | meaning |", "|---|---|---|---|---|"]
    for s in TABLE:
        meaning = s.help + (f" ({', '.join(s.choices)})" if s.choices else "")
        default = f"`{s.default}`" if s.default != "" else "empty"
        flag = f"`{s.flag}`" if s.flag else ""
        lines.append(f"| {flag} | `{s.variable}` | {default} | {s.unit} | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"
