"""Reads the configuration: a TOML file, then the environment over it. Must not know what any key means,
but for those that contradict each other."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, get_args, get_origin

import msgspec

from schemas.config import AUTO, Config

PREFIX = "HEADRACE_"
_NOT_SETTINGS = {"HEADRACE_CONFIG", "HEADRACE_CACHE_DIR", "HEADRACE_API_KEY"}
_OPEN_SECTION = "vllm"  # any key: the worker checks them against the engine's own arguments
# Kubernetes puts these into every pod of a namespace that has a Service called headrace-something.
_SERVICE_LINK = re.compile(
    r"HEADRACE_\w+?_(SERVICE_(HOST|PORT\w*)|PORT_\d+_(TCP|UDP|SCTP)\w*)|HEADRACE(_\w+)?_PORT"
)

# user:password@ or token@ of an address, of which there may be several, separated by commas. What a password
# should not hold unescaped (@ / ,) is hidden all the same.
_USERINFO = re.compile(r"(?<=://)(?:(?!,\w+://)\S)*@|(?:^|(?<=[,\s]))(?:(?!://)[^,\s])*@")

Key = tuple[str, str]  # section and key


class ConfigError(Exception):
    """One line for each thing wrong, naming the key, where it was set, and what it may be."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """``origins``: where each key that is not at its default was set, a file's name or a variable's."""

    config: Config
    origins: Mapping[Key, str]


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """``path`` None: ``HEADRACE_CONFIG`` if set, else defaults only. Raises ``ConfigError``."""
    return read(path, environ).config


def read(path: Path | None, environ: Mapping[str, str]) -> Loaded:
    """``load``, and where each value came from."""
    if path is None and environ.get("HEADRACE_CONFIG"):
        path = Path(environ["HEADRACE_CONFIG"])
    reader = _Reader()
    if path is not None:
        reader.add_file(path)
    reader.add_environment(environ)
    if reader.errors:
        raise ConfigError("\n".join(reader.errors))
    config = msgspec.convert(reader.values, Config)
    if contradictions := list(_contradictions(config)):
        raise ConfigError("\n".join(contradictions))
    return Loaded(config, reader.origins)


def _contradictions(config: Config) -> Iterator[str]:
    yield from _too_short(config)
    yield from _unroutable(config)


def _too_short(config: Config) -> Iterator[str]:
    """What the broker must keep for as long as a response may run, and for as long again to resume it."""
    nats, deadline_s = config.nats, config.gateway.deadline_s
    if nats.replies_max_age_s < 2 * deadline_s:
        yield (
            f"nats.replies_max_age_s: {nats.replies_max_age_s:g} is less than twice gateway.deadline_s "
            f"({deadline_s:g}): a reply log would lose its head; raise it, or lower gateway.deadline_s"
        )
    if nats.jobs_max_age_s < deadline_s:
        yield (
            f"nats.jobs_max_age_s: {nats.jobs_max_age_s:g} is less than gateway.deadline_s "
            f"({deadline_s:g}): a job would go before its deadline; raise it, or lower gateway.deadline_s"
        )


def _unroutable(config: Config) -> Iterator[str]:
    """Names of routing that lead nowhere, or to two places."""
    routing = config.routing
    for alias, target in routing.aliases.items():
        where = f"routing.aliases: {alias!r}"
        if alias == AUTO:
            yield f"{where} is the policy's own name: choose another alias"
        elif target in routing.aliases:
            yield f"{where} leads to the alias {target!r}: name a served model"
        elif target == AUTO and not routing.auto:
            yield f'{where} leads to "auto", and routing.auto has no candidates: add some'
    if config.gateway.default_model == AUTO and not routing.auto:
        yield 'gateway.default_model is "auto", and routing.auto has no candidates: add some'
    for candidate in routing.auto:
        if candidate.model == AUTO or candidate.model in routing.aliases:
            yield f"routing.auto: {candidate.model!r} is not a served name: name the model itself"
    if len(set(routing.auto)) < len(routing.auto):
        yield "routing.auto: a candidate stands there twice: remove one"
    for model, others in routing.fallback.items():
        where = f"routing.fallback: {model!r}"
        if model == AUTO or model in routing.aliases:
            yield f"{where} is not a served name: name the model itself"
        if not others or model in others or len(set(others)) < len(others):
            yield f"{where}: list other models, each once"
        for other in others:
            if other == AUTO or other in routing.aliases:
                yield f"{where}: {other!r} is not a served name: name the model itself"


def key_types() -> dict[Key, object]:
    """The type of every key there is, but for the open section's."""
    return {
        (section.name, key.name): key.type
        for section in msgspec.structs.fields(Config)
        if section.name != _OPEN_SECTION
        for key in msgspec.structs.fields(section.type)
    }


def variable_of(section: str, key: str) -> str:
    return f"{PREFIX}{section}__{key}".upper()


@dataclass(slots=True)
class _Reader:
    """Collects values and everything wrong with them, so that one run shows all that is to be mended."""

    values: dict[str, dict[str, object]] = field(default_factory=dict)
    origins: dict[Key, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    types: dict[Key, object] = field(default_factory=key_types)

    def add_file(self, path: Path) -> None:
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            self.errors.append(f"{path}: cannot be read: {error.strerror or error}")
            return
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            self.errors.append(f"{path}: not valid TOML: {error}")
            return
        for section, table in tables.items():
            if section not in self._sections():
                what = "section" if isinstance(table, dict) else "key outside a section"
                self.errors.append(f"{path}: {section}: unknown {what}{_closest(section, self._sections())}")
            elif not isinstance(table, dict):
                self.errors.append(f"{path}: {section}: expected a table, [{section}]")
            else:
                for key, value in table.items():
                    self._add(section, key, value, f"{path}: {section}.{key}", str(path), strict=True)

    def add_environment(self, environ: Mapping[str, str]) -> None:
        for name, text in sorted(environ.items()):
            if not name.startswith(PREFIX) or name in _NOT_SETTINGS:
                continue
            if "__" not in name and _SERVICE_LINK.fullmatch(name):
                continue
            section, separator, key = name.removeprefix(PREFIX).lower().partition("__")
            if section == _OPEN_SECTION and key:
                self._add(section, key, _toml_value(text), name, name, strict=True)
            elif separator and (section, key) in self.types:
                self._add(section, key, text, name, name, strict=False)
            else:
                variables = [variable_of(*known) for known in self.types]
                self.errors.append(f"{name}: unknown variable{_closest(name, variables)}")

    def _add(self, section: str, key: str, value: object, where: str, origin: str, *, strict: bool) -> None:
        """``strict``: the value has a type of its own (TOML), it is not text to be read as one."""
        if section != _OPEN_SECTION:
            if (section, key) not in self.types:
                known = [k for s, k in self.types if s == section]
                self.errors.append(f"{where}: unknown key{_closest(key, known)}")
                return
            type_ = self.types[section, key]
            if not strict and isinstance(value, str):
                value, strict = _from_variable(value, type_)
            try:
                value = msgspec.convert(value, type_, strict=strict)
            except msgspec.ValidationError as error:
                self.errors.append(f"{where}: {_explain(error, type_)}")
                return
            if isinstance(value, float) and not math.isfinite(value):
                self.errors.append(f"{where}: Expected a finite number")
                return
        self.values.setdefault(section, {})[key] = value
        self.origins[section, key] = origin

    def _sections(self) -> tuple[str, ...]:
        return Config.__struct_fields__


def shown_values(config: Config) -> Iterator[tuple[str, str, object]]:
    """Section, key and value of all of a configuration, in the order of its declaration."""
    for section in Config.__struct_fields__:
        table = getattr(config, section)
        items = table.items() if isinstance(table, dict) else msgspec.structs.asdict(table).items()
        for key, value in items:
            yield section, key, value


def masked_urls(text: str) -> str:
    """Addresses without user, password and token."""
    return _USERINFO.sub("****@", text)


def _closest(name: str, known: list[str] | tuple[str, ...]) -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known: {', '.join(known)}" if len(known) < 20 else ""


def _explain(error: msgspec.ValidationError, type_: object) -> str:
    """msgspec's own words, which never hold the value (it may be a secret), and a choice's choices."""
    if get_origin(type_) is Literal:
        return "Expected one of " + ", ".join(f'"{choice}"' for choice in get_args(type_))
    return str(error)


def _from_variable(text: str, type_: object) -> tuple[object, bool]:
    """A variable's text, and whether it has its type already: tables are written as in TOML, lists of simple
    values also without brackets."""
    kind = get_origin(type_)
    if kind is dict or (kind is tuple and isinstance(get_args(type_)[0], msgspec.StructMeta)):
        return _toml_value(text), True
    if kind is tuple:
        return [part.strip() for part in text.split(",") if part.strip()], False
    return text, False


def _toml_value(text: str) -> object:
    """``16`` is a number, ``true`` a truth, ``["a"]`` a list, and what is not TOML is text."""
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return table["value"] if len(table) == 1 else text
