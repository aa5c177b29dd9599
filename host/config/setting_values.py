"""Values of settings, read from TOML, variables and flags: each function takes what came and gives the value."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit


class UnparsableError(Exception):
    """The value is not what the setting expects."""


def a_number(raw: object, kind: type[int] | type[float], *, typed: bool) -> int | float:
    """A number; of a text only if it is not `typed`. Raises `UnparsableError`, as do the others."""
    if not typed and isinstance(raw, str) and raw.isascii() and "_" not in raw:
        try:
            return kind(raw)
        except ValueError:
            raise UnparsableError from None
    if type(raw) is int or (kind is float and type(raw) is float):
        return kind(raw)
    raise UnparsableError


def an_address(raw: object) -> str:
    """An IP address, or localhost."""
    if raw == "localhost":
        return raw
    try:
        return str(ipaddress.ip_address(raw if isinstance(raw, str) else ""))
    except ValueError:
        raise UnparsableError from None


def a_url(raw: object) -> str:
    """A URL that may be shown: without a secret, and in one way to read it."""
    if not isinstance(raw, str) or not (raw.isascii() and is_plain_text(raw)) or " " in raw:
        raise UnparsableError
    try:
        parts = urlsplit(raw)
        whole = parts.hostname and parts.port != 0  # reading a port raises ValueError if it is none
    except ValueError:
        raise UnparsableError from None
    if parts.scheme not in ("http", "https") or not whole or "@" in parts.netloc or "?" in raw or "#" in raw:
        raise UnparsableError
    return raw


def a_path(raw: object, base: Path, environ: Mapping[str, str]) -> Path:
    """A path, below `base` if it is relative; `~` is the home directory."""
    if not isinstance(raw, str) or not raw or not is_plain_text(raw):
        raise UnparsableError
    if raw == "~" or raw.startswith("~/"):
        home = environ.get("HOME") or os.path.expanduser("~")  # noqa: PTH111 - only `~`, and a missing HOME is no error
        return Path(home, raw[2:])
    return base / raw


def is_plain_text(text: str) -> bool:
    """Whether a text can stand in supervisord's file and in a log line: UTF-8, no control characters."""
    return not any(ord(char) < 0x20 or ord(char) == 0x7F or 0xD800 <= ord(char) <= 0xDFFF for char in text)
