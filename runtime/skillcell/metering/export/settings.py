"""Sinks as an operator sets them: a JSON list of objects, inline or in a file. Unknown keys are errors, by their path.

Header values are secrets: they are never logged, shown or stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from skillcell.core.errors import invalid
from skillcell.core.json_text import NotJson, parse_json
from skillcell.core.sinks import SinkMode
from skillcell.metering.export.answers import BackOff
from skillcell.metering.export.events import EVENT_TYPE

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e\x80-\xff]*")
_OURS = frozenset({"content-type", "content-length", "host", "transfer-encoding", "connection"})
_MOST_SINKS = 32
_DAY = 86_400.0


class Mode(Enum):
    """As an operator writes it."""

    STRUCTURED = "structured"
    BATCH = "batch"


class SinkSettings(BaseModel):
    """One HTTP sink of usage events."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    """Names its cursor for ever: another name starts anew."""
    url: str
    """https://…, or http://… where the way there is trusted. Credentials belong in headers."""
    mode: Mode = Mode.BATCH
    """`batch`: many events to a request; `structured`: one."""
    headers: Mapping[str, SecretStr] = Field(default_factory=dict)
    """More headers, as `{"Authorization": "Bearer …"}`."""
    headers_file: Path | None = None
    """A file of lines `Name: value`, read anew for every run of requests, so that a token can be changed in it."""
    ca_file: Path | None = None
    """Certificates (PEM) that the sink's must lead to; without it the system's and certifi's."""
    source: str = Field(default="", max_length=512)
    """`source` of the events; empty: `/skillcell/ledgers/` and the ledger's own id."""
    type: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,254}$")] = EVENT_TYPE
    """`type` of the events."""
    start: Literal["first", "next"] = "first"
    """Where a new sink begins: with the ledger's first record, or with what is settled from now on."""
    batch_events: int = Field(default=100, ge=1, le=10_000)
    """Events in one request at the most; in structured mode, events that are under way together."""
    batch_bytes: int = Field(default=1 << 20, ge=1 << 10, le=64 << 20)
    """Bytes of one request's body at the most; an event that is larger goes alone."""
    timeout_seconds: float = Field(default=30.0, gt=0, le=600)
    """For one request, from connecting to its answer."""
    dedup_window_seconds: float | None = Field(default=32 * _DAY, gt=0)
    """How long the sink remembers ids, from when it first got one (OpenMeter: 32 days); null: for ever."""
    back_off_seconds: float = Field(default=1.0, gt=0, le=3600)
    """The first wait after a failure; it doubles with each."""
    back_off_max_seconds: float = Field(default=300.0, gt=0, le=_DAY)
    """The longest wait, but for a longer Retry-After."""
    poll_seconds: float = Field(default=0.5, gt=0, le=3600)
    """How often new records are looked for."""
    refused_in_a_row: int = Field(default=100, ge=1)
    """Events refused one by one, none taken between them, after which the sink is held."""

    @property
    def wire_mode(self) -> SinkMode:
        return SinkMode[self.mode.name]

    @property
    def back_off(self) -> BackOff:
        first, longest = self.back_off_seconds, max(self.back_off_seconds, self.back_off_max_seconds)
        return BackOff(timedelta(seconds=first), timedelta(seconds=longest))

    @property
    def timeout(self) -> timedelta:
        return timedelta(seconds=self.timeout_seconds)

    @property
    def window(self) -> timedelta | None:
        return None if self.dedup_window_seconds is None else timedelta(seconds=self.dedup_window_seconds)

    @property
    def shown_url(self) -> str:
        """Without its query."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}{parts.path}"

    @field_validator("url")
    @classmethod
    def _http(cls, url: str) -> str:
        parts = urlsplit(url)
        try:
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            valid = False
        if not valid or not url.isprintable() or " " in url:
            raise ValueError("is not a URL https://HOST/PATH")
        if parts.username is not None or parts.password is not None:
            raise ValueError("holds credentials; give them as a header")
        if parts.fragment:
            raise ValueError("has a fragment, which no server gets")
        return url

    @field_validator("headers")
    @classmethod
    def _of_http(cls, headers: Mapping[str, SecretStr]) -> Mapping[str, SecretStr]:
        for name, value in headers.items():
            problem = header_problem(name, value.get_secret_value())
            if problem:
                raise ValueError(problem)
        return headers

    @field_validator("source")
    @classmethod
    def _uri_reference(cls, source: str) -> str:
        if not source.isascii() or any(character.isspace() or not character.isprintable() for character in source):
            raise ValueError("is not a URI reference")
        return source

    @model_validator(mode="after")
    def _window_outlasts_requests(self) -> Self:
        if self.dedup_window_seconds is not None and self.dedup_window_seconds <= 2 * self.timeout_seconds:
            raise ValueError("dedup_window_seconds must be over twice timeout_seconds")
        return self


def header_problem(name: str, value: str) -> str:
    """Why a header can't be sent, without its value; empty where it can."""
    if not _HEADER_NAME.fullmatch(name):
        return f"{name!r} is not the name of a header"
    if name.lower() in _OURS:
        return f"{name} is the gateway's to set"
    if not _HEADER_VALUE.fullmatch(value):
        return f"the value of {name} has characters that no header may have"
    return ""


def read_sinks(setting: str) -> tuple[SinkSettings, ...]:
    """Of a JSON list, or of the path of a file that holds one; empty for an empty setting.

    INVALID_ARGUMENT with the path of the key, and never with a value.
    """
    text = setting.strip()
    if not text:
        return ()
    if not text.startswith(("[", "{")):
        try:
            text = Path(setting.strip()).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "is not UTF-8"
            raise invalid("sinks", f"the file {setting.strip()!r} can't be read: {why}") from None
    try:
        document = parse_json(text.encode())
    except NotJson as error:
        raise invalid("sinks", f"is not JSON: {error}") from None
    try:
        sinks = TypeAdapter(tuple[SinkSettings, ...]).validate_python(document)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise invalid(_path(first["loc"]), first["msg"].removeprefix("Value error, ")) from None
    names = [sink.name for sink in sinks]
    doubled = next((number for number, name in enumerate(names) if name in names[:number]), None)
    if doubled is not None:
        raise invalid(f"sinks[{doubled}].name", f"{names[doubled]!r} is there twice")
    if len(sinks) > _MOST_SINKS:
        raise invalid("sinks", f"has {len(sinks)} sinks; the limit is {_MOST_SINKS}")
    return sinks


def _path(location: tuple[int | str, ...]) -> str:
    """`sinks[0].batch_event`."""
    return "sinks" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
