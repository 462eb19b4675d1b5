"""What the server is told: a TOML file, then the environment, then flags; each overrides the one before.

Every setting has one name everywhere: `max_rows` below `[engine]` in the file, `DRAGOMAN_MAX_ROWS` in the environment,
`--max-rows` on the command line. `load_config` checks all of them once and reports every problem together.
"""

import argparse
import ast
import dataclasses
import functools
import inspect
import json
import re
import textwrap
import tomllib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.config_rules import problems_together
from service.setting import ENVIRONMENT_PREFIX, Setting

# Kubernetes puts such variables into every container for a Service called dragoman; they are not meant for us.
_KUBERNETES_LINK = re.compile(r"(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT\w*|PORT(?:_\d+_\w+)?)")
MIN_SOURCE_TOKENS = 8
"""Fewest source tokens a segment must be allowed: one character may be four bytes, a space before it and the end of
sentence besides, and a character cannot be split."""


class ConfigError(ValueError):
    """A configuration that cannot be used; `problems` lists every reason, one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(f"The configuration has {len(problems)} problem(s):\n{lines}")
        self.problems = problems


def _setting(
    default: Any,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
    or_zero: bool = False,
) -> Any:
    """A field with the values it may have."""
    return field(default=default, metadata={"least": least, "most": most, "choices": choices, "or_zero": or_zero})


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Where the server listens and how it treats connections."""

    address: str = "127.0.0.1:50051"
    """host:port of gRPC; port 0 lets the system choose."""
    metrics_address: str = "127.0.0.1:9464"
    """host:port of the Prometheus page; empty: none."""
    admin_address: str = ""
    """host:port of the port where operators load and unload models; empty: none."""
    models: str = "models"
    """Directory of bundles: each sub-directory with a file of one is served, unless its name begins with a dot."""
    models_poll_seconds: float = _setting(0.0, least=0)
    """How often that directory is looked at for bundles that have come, changed or gone; 0: never."""
    default_models: str = ""
    """PAIR=NAME,...: the model that is taken where a call names only the language pair, as in en-zh. Left out: the
    first by name."""
    reflection: bool = True
    """Whether tools such as grpcurl may ask for the interface."""
    max_message_bytes: int = _setting(4 * 2**20, least=1024, most=2**31 - 1)
    """Largest request message taken; replies are not limited here."""
    keepalive_seconds: float = _setting(60.0, least=1)
    """How long a connection may be silent before the server pings it."""
    keepalive_timeout_seconds: float = _setting(20.0, least=1)
    """How long an answer to that ping may take before the connection is closed."""
    min_ping_seconds: float = _setting(10.0, least=0)
    """Pings of a client that come faster than this get the connection closed."""
    max_connection_age_seconds: float = _setting(600.0, least=0)
    """After this (give or take a tenth) a client is asked to connect again, and so finds new servers; 0: never."""
    max_connection_age_grace_seconds: float = _setting(120.0, least=0)
    """How long calls of such a connection may still run."""


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """What a caller may ask for, and how much may wait."""

    max_contents: int = _setting(1024, least=1)
    """Items of one call."""
    max_characters_per_item: int = _setting(100_000, least=1)
    """Characters (code points) of one item."""
    max_concurrent_calls: int = _setting(1024, least=1)
    """Calls that may be in progress; more are refused at once."""
    max_waiting_segments: int = _setting(65_536, least=1)
    """Segments that may wait for a row, of all callers together. An item of 100,000 characters has at most 50,000."""
    max_waiting_tokens: int = _setting(524_288, least=1)
    """Source tokens that may wait, of all callers together. 100,000 characters have at most some 410,000."""
    max_waiting_characters: int = _setting(4 * 2**20, least=1)
    """Characters of texts that may wait to be cut into segments, of all callers together; one call alone may have
    more."""
    max_calls_per_caller: int = _setting(0, least=0)
    """Calls that one caller may have in progress, all anonymous ones together; 0: as many as all."""
    standing_delay_seconds: float = _setting(5.0, least=0)
    """How much work, in seconds, may be ahead of a call for longer than `standing_interval_seconds`; more is refused
    until it has become less. 0: only the queue's limits hold."""
    standing_interval_seconds: float = _setting(0.5, least=0.001)
    """How long there may be more, so that a burst passes."""
    refuse_late: bool = True
    """Whether a call that is predicted to miss its deadline is refused at once."""
    reserved_share: float = _setting(0.125, least=0, most=0.9)
    """Share of `max_waiting_segments` and `max_waiting_tokens` that is kept for interactive segments of callers none of
    whose wait; bulk never takes it."""
    bulk_patience_seconds: float = _setting(5.0, least=0)
    """How long bulk segments wait while interactive ones want all rows; then one at a time goes before these, in each
    engine."""
    retry_seconds: float = _setting(0.5, least=0.001)
    """When a refused caller is told to try again, at least; it grows with the work that waits."""
    max_stream_stall_seconds: float = _setting(30.0, least=0.001)
    """How long a message of a stream may wait for a client that does not read; then its call is ended."""


@dataclass(frozen=True, kw_only=True)
class TlsConfig:
    """How connections are encrypted, and whose certificates are asked for."""

    tls_certificate: str = ""
    """PEM file of the server's certificate and those that vouch for it; empty: no TLS. Read anew when
    it has changed."""
    tls_key: str = ""
    """PEM file of its private key, not encrypted. Read anew when it has changed."""
    tls_client_ca: str = ""
    """PEM file of who vouches for clients: each must have a certificate then, and its name is the caller. Read anew
    when it has changed."""


@dataclass(frozen=True, kw_only=True)
class AccessConfig:
    """Who may call."""

    api_keys_file: str = ""
    """TOML file of hashed keys: each call must show one then (see `keys new`). Read anew when it has changed."""
    bearer_hook: str = ""
    """module:function of an async function that knows the callers of other tokens than keys."""
    allow_plaintext_keys: bool = False
    """Whether tokens may come without TLS to another address than loopback, as from a proxy that ends TLS."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The decoding loop."""

    max_rows: int = _setting(64, least=1, most=4096)
    """Sentences decoded together at most: rows of the slab of keys and values."""
    max_source_tokens: int = _setting(128, least=MIN_SOURCE_TOKENS, or_zero=True)
    """Source tokens of a segment, end of sentence included, 8 or more; longer sentences are split. 0: what the model
    takes."""
    max_target_tokens: int = _setting(256, least=0)
    """Target tokens of a segment, end of sentence included. 0: what the model can make. The slab grows with both."""
    max_encode_tokens: int = _setting(1024, least=1)
    """Source tokens, padding included, encoded at most between two decoding steps, so that running sentences go on."""
    num_workers: int = _setting(0, least=0, most=64)
    """Engines side by side, each with a share of the rows. 0: one a core, at most 4."""
    num_threads: int = _setting(0, least=0, most=1024)
    """Threads of each engine's graphs. 0: the cores this process may use, by its cgroup and affinity, shared out."""
    allow_spinning: bool = False
    """Whether idle threads of the graphs wait busily: faster where cores are free, slower where callers need them."""
    niceness: int = _setting(0, least=0, most=19)
    """How much the engines give way to the thread that takes calls, as with `nice`; on Linux. With 10, calls are taken
    and refused sooner when there are far too many, and fewer are answered meanwhile."""
    require_same_bytes: bool = True
    """Whether a model that fails the same-bytes probe on this machine is refused at start."""
    provider: str = _setting("cpu", choices=("cpu",))
    """Where the graphs run."""


@dataclass(frozen=True, kw_only=True)
class SwapConfig:
    """How a model that is loaded while the server runs is tried before it is served."""

    canary_sentences: int = _setting(32, least=0, most=1024)
    """Lines of `canaries/PAIR.txt` in the directory of models that a new model of the pair must translate, at most."""
    canary_min_similarity: float = _setting(0.3, least=0, most=1)
    """How similar its translations must be in the mean to those of the model whose place it takes (F1 of character
    pairs)."""
    max_memory_bytes: int = _setting(0, least=0)
    """What all models together may take, those that serve their last calls included; one that would need more is not
    opened. During a change the old and the new model count. 0: not limited."""


@dataclass(frozen=True, kw_only=True)
class ShutdownConfig:
    """How the server stops."""

    shutdown_delay_seconds: float = _setting(5.0, least=0)
    """How long after SIGTERM calls are still taken, until the world has seen the readiness go. Not after Ctrl-C."""
    drain_seconds: float = _setting(20.0, least=0)
    """How long running calls may take to finish after that."""


@dataclass(frozen=True, kw_only=True)
class LogsConfig:
    """What is written to stderr."""

    log_format: str = _setting("json", choices=("json", "text"))
    """One JSON object a line, or lines for people."""
    log_level: str = _setting("info", choices=("debug", "info", "warning", "error"))
    """Least severity written."""
    log_requests: bool = False
    """Whether every call is written (never its text); failures of the server always are."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a server."""

    server: ServerConfig = ServerConfig()
    """Where it listens."""
    limits: LimitsConfig = LimitsConfig()
    """What callers may ask for."""
    tls: TlsConfig = TlsConfig()
    """How connections are encrypted."""
    access: AccessConfig = AccessConfig()
    """Who may call."""
    engine: EngineConfig = EngineConfig()
    """The decoding loop."""
    swap: SwapConfig = SwapConfig()
    """How models are changed."""
    shutdown: ShutdownConfig = ShutdownConfig()
    """How it stops."""
    logs: LogsConfig = LogsConfig()
    """What it writes."""

    def to_toml(self) -> str:
        """These settings as a file that `load_config` reads."""
        blocks = []
        for section in dataclasses.fields(self):
            lines = [f"[{section.name}]"]
            values = dataclasses.asdict(getattr(self, section.name))
            lines += [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
            blocks.append("\n".join(lines) + "\n")
        return "\n".join(blocks)


@functools.cache
def settings() -> dict[str, Setting]:
    """Every setting by its name, in the order of the file."""
    found: dict[str, Setting] = {}
    for section in dataclasses.fields(Config):
        section_type = typing.cast(type, section.type)
        helps = _field_docstrings(section_type)
        for entry in dataclasses.fields(section_type):
            assert entry.name not in found, f"two settings are called {entry.name}"
            found[entry.name] = Setting(
                section=section.name,
                name=entry.name,
                kind=typing.cast(type, entry.type),
                default=typing.cast(Any, entry.default),
                help=helps[entry.name],
                least=entry.metadata.get("least"),
                most=entry.metadata.get("most"),
                choices=entry.metadata.get("choices", ()),
                or_zero=entry.metadata.get("or_zero", False),
            )
    return found


def _field_docstrings(cls: type) -> dict[str, str]:
    """The string under each field of a class, as written in its source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for statement, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(after, ast.Expr):
            assert isinstance(statement.target, ast.Name)
            assert isinstance(after.value, ast.Constant)
            found[statement.target.id] = " ".join(str(after.value.value).split())
    return found


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--config` and a flag for every setting; what is left out of the command line stays out of the result."""
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings (see --print-config)")
    groups: dict[str, Any] = {}
    for setting in settings().values():
        group = groups.setdefault(setting.section, parser.add_argument_group(setting.section))
        text = f"{setting.help} (default: {_shown(setting.default)})".replace("%", "%%")
        if setting.kind is bool:
            group.add_argument(
                setting.flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
            )
        else:
            shape = "|".join(setting.choices) or setting.kind.__name__.upper()
            group.add_argument(setting.flag, metavar=shape, default=argparse.SUPPRESS, help=text)


def _shown(default: str | int | float | bool) -> str:
    return json.dumps(default) if isinstance(default, (bool, str)) else f"{default:,}" if default else "0"


def load_config(
    *,
    file: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """The configuration that a file, the environment and flags give, the later ones first.

    `environment` may hold other variables; those that begin with DRAGOMAN_ must be known. `DRAGOMAN_CONFIG` names the
    file where `file` does not. `flags` holds texts or booleans by the settings' names; others are ignored.

    Raises:
        ConfigError: listing every problem of all three.
    """
    environment = environment or {}
    problems: list[str] = []
    given: dict[str, tuple[Any, str]] = {}  # setting -> value, where it was said
    file = file or environment.get(f"{ENVIRONMENT_PREFIX}CONFIG")
    if file:
        given.update(_read_file(Path(file), problems))
    given.update(_read_environment(environment, problems))
    for name, setting in settings().items():
        if flags is not None and name in flags:
            flag = flags[name]
            given[name] = (setting.parse(flag) if isinstance(flag, str) else flag, setting.flag)
    for name, (value, where) in given.items():
        if problem := settings()[name].problem(value, where):
            problems.append(problem)
    if problems:
        raise ConfigError(problems)
    sections = {}
    for section in dataclasses.fields(Config):
        section_type = typing.cast(Any, section.type)
        names = [entry.name for entry in dataclasses.fields(section_type)]
        values = {name: settings()[name].kind(given[name][0]) for name in names if name in given}
        sections[section.name] = section_type(**values)
    config = Config(**sections)
    if problems := problems_together(config):
        raise ConfigError(problems)
    return config


def _read_environment(environment: Mapping[str, str], problems: list[str]) -> Iterator[tuple[str, tuple[Any, str]]]:
    """The settings of the environment by name, with where they were said; what is no setting becomes a problem."""
    for variable, text in sorted(environment.items()):
        name = variable.removeprefix(ENVIRONMENT_PREFIX)
        if name in (variable, "CONFIG") or _KUBERNETES_LINK.fullmatch(name):
            continue
        setting = settings().get(name.lower())
        if setting is None or setting.variable != variable:
            problems.append(f"{variable} in the environment must be a known setting, but is not.")
        else:
            yield setting.name, (setting.parse(text), variable)


def _read_file(path: Path, problems: list[str]) -> Iterator[tuple[str, tuple[Any, str]]]:
    """The settings of a TOML file by name, with where they were said; what is no setting becomes a problem."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problems.append(f"{path} must be a readable TOML file, but is not: {error}")
        return
    sections = {section.name for section in dataclasses.fields(Config)}
    for table, values in tables.items():
        if table not in sections or not isinstance(values, dict):
            problems.append(f"`{table}` in {path} must be one of the tables {', '.join(sorted(sections))}, but is not.")
            continue
        for name, value in values.items():
            setting = settings().get(name)
            if setting is None or setting.section != table:
                problems.append(f"`{table}.{name}` in {path} must be a known setting, but is not.")
            else:
                yield name, (value, str(path))
