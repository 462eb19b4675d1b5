"""Which keys open the server, and to whom do they belong?

A key is `drg_<id>_<secret>`. Its file holds the hash of the key only: whoever reads the file cannot call. The secret
has 256 random bits, so nobody finds it from the hash by trying, and a fast hash is enough.
"""

import dataclasses
import hashlib
import hmac
import json
import math
import re
import secrets
import tomllib
from collections.abc import Callable
from typing import Any

from service.caller import ANONYMOUS, SAFE_NAME, Caller
from service.refusals import CredentialsError
from service.watched_files import FilesError, WatchedFiles, read_text

PREFIX = "drg_"
"""What every key begins with."""
_KEY = re.compile(rf"{PREFIX}([0-9a-f]{{12}})_([0-9A-Za-z_-]{{43}})")
_ID = re.compile(r"[0-9a-f]{12}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NOBODY = "0" * 64
"""The hash of no key: what a key with an unknown id is compared with."""


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


_RATE = "a number, 0 or more"
_SETTINGS: dict[str, tuple[str, str, Callable[[Any], bool]]] = {
    "weight": ("weight", "a number above 0", lambda value: _is_number(value) and value > 0),
    "max_calls": ("max_calls", "a whole number, 0 or more", lambda value: type(value) is int and value >= 0),
    "segments_per_second": ("segments_per_second", _RATE, _is_number),
    "tokens_per_second": ("tokens_per_second", _RATE, _is_number),
    "models": (
        "models",
        "a list of names, one at least",
        lambda value: isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value),
    ),
    "admin": ("is_admin", "true or false", lambda value: isinstance(value, bool)),
}
"""What a key may have beside its name: the caller's field, what the value must be, and whether one is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ApiKey:
    """One entry of the file."""

    key_id: str
    """The part of the key that may be known."""
    sha256: str
    """Hash of the whole key, hexadecimal."""
    caller: Caller
    """Whose calls those with this key are."""

    def to_toml(self) -> str:
        """The entry as the file has it."""
        caller = self.caller
        lines = ["[[keys]]", f'id = "{self.key_id}"', f'sha256 = "{self.sha256}"', f'name = "{caller.name}"']
        for name, (field, _, _) in _SETTINGS.items():
            value = getattr(caller, field)
            if value != getattr(ANONYMOUS, field):
                lines.append(f"{name} = {json.dumps(sorted(value) if isinstance(value, frozenset) else value)}")
        return "\n".join(lines) + "\n"


class ApiKeys:
    """The keys of a file, as of now."""

    def __init__(self, path: str, *, on_failure: Callable[[], None] = lambda: None) -> None:
        """See `WatchedFiles`.

        Raises:
            FilesError: when the file cannot be used.
        """
        self._keys = WatchedFiles([path], lambda: read_keys(path), what="api_keys", on_failure=on_failure)

    def caller_of(self, key: str) -> Caller:
        """Whose key it is. Takes as long for a key that is nearly right as for any other.

        Raises:
            CredentialsError: when it is nobody's.
        """
        parts = _KEY.fullmatch(key)
        found = self._keys.current().get(parts[1]) if parts else None
        wanted = found.sha256 if found is not None else _NOBODY
        is_right = hmac.compare_digest(sha256_of(key), wanted)
        if found is None or not is_right:
            raise CredentialsError("The key must be one that is known here, but is not.", reason="CREDENTIALS_INVALID")
        return found.caller


def sha256_of(key: str) -> str:
    """The hash of a key, as the file has it."""
    return hashlib.sha256(key.encode()).hexdigest()


def is_key(token: str) -> bool:
    """Whether a token says of itself that it is a key."""
    return token.startswith(PREFIX)


def new_key(caller: Caller) -> tuple[str, ApiKey]:
    """A key that nobody has yet, and its entry for the file."""
    key_id = secrets.token_hex(6)
    key = f"{PREFIX}{key_id}_{secrets.token_urlsafe(32)}"
    return key, ApiKey(key_id=key_id, sha256=sha256_of(key), caller=caller)


def read_keys(path: str) -> dict[str, ApiKey]:
    """The keys of a file by id.

    Raises:
        FilesError: listing everything that is wrong. What stands in the file is not repeated: it may be a key.
        OSError: when it cannot be read.
    """
    text = read_text(path)
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        where = re.search(r"line \d+", str(error))
        raise FilesError([f"{path} must be a TOML file, but is not{f' at {where[0]}' if where else ''}."]) from None
    entries = tables.get("keys", [])
    if set(tables) - {"keys"} or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise FilesError([f"{path} must have tables called [[keys]] and nothing else, but has."])
    problems: list[str] = []
    keys: dict[str, ApiKey] = {}
    callers: dict[str, Caller] = {}
    for number, entry in enumerate(entries, start=1):
        found, wrong = _read_entry(entry)
        if found is not None and found.key_id in keys:
            wrong.append("`id` must be no other key's, but is")
        if found is not None and callers.setdefault(found.caller.name, found.caller) != found.caller:
            wrong.append("all but `id` and `sha256` must be the same for all keys of one name, but is not")
        problems += [f"Key {number} of {path}: {problem}." for problem in wrong]
        if found is not None:
            keys[found.key_id] = found
    if problems:
        raise FilesError(problems)
    return keys


def _read_entry(entry: dict[str, Any]) -> tuple[ApiKey | None, list[str]]:
    """A key, unless something is wrong with its entry; and what is."""
    problems = []
    for name, pattern, what in (
        ("id", _ID, "12 hexadecimal digits"),
        ("sha256", _SHA256, "64 hexadecimal digits"),
        ("name", SAFE_NAME, "1 to 64 letters, digits and ._:-"),
    ):
        value = entry.get(name)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            problems.append(f"`{name}` must be {what}, but is {'not' if name in entry else 'missing'}")
    fields: dict[str, Any] = {}
    for name in entry.keys() - {"id", "sha256", "name"}:
        if name not in _SETTINGS:
            problems.append("every setting must be a known one, but one is not")
            continue
        field, must, is_allowed = _SETTINGS[name]
        if not is_allowed(entry[name]):
            problems.append(f"`{name}` must be {must}, but is not")
            continue
        fields[field] = frozenset(entry[name]) if field == "models" else entry[name]
    if problems:
        return None, sorted(problems)
    caller = Caller(name=entry["name"], **fields)
    return ApiKey(key_id=entry["id"], sha256=entry["sha256"], caller=caller), []
