# SPDX-License-Identifier: Apache-2.0
"""What can be set from outside, each from an environment variable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from numaplacement.api.quantities import parse_duration

PREFIX = "NUMAPLACEMENT_"
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class SettingError(Exception):
    """A setting cannot be used; the message names it and says what it should look like."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Times and counts that decisions depend on."""

    take_up: float = 30.0
    """NUMAPLACEMENT_TAKE_UP: how long an agent may take to notice an order before it counts as not responding."""
    silence: float = 300.0
    """NUMAPLACEMENT_SILENCE: how long an agent may report nothing of a move under way before it counts so."""
    retry: float = 10.0
    """NUMAPLACEMENT_RETRY: how long after a first failed attempt the second follows; each later one waits twice as
    long."""
    retry_limit: float = 600.0
    """NUMAPLACEMENT_RETRY_LIMIT: the longest wait between two attempts."""
    history: int = 3
    """NUMAPLACEMENT_HISTORY: finished orders that are kept for each VM."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings. Durations are seconds here and written as 90s, 5m or 200ms outside."""

    rules: Rules = field(default_factory=Rules)
    sweep: float = 300.0
    """NUMAPLACEMENT_SWEEP: time between two lists of everything, which find what a watch has missed."""
    status_interval: float = 2.0
    """NUMAPLACEMENT_STATUS_INTERVAL: shortest time between two writes of one status that differ in progress only."""
    error_backoff: float = 1.0
    """NUMAPLACEMENT_ERROR_BACKOFF: first wait after the API server refused or did not answer; it doubles each time."""
    error_backoff_limit: float = 120.0
    """NUMAPLACEMENT_ERROR_BACKOFF_LIMIT: the longest such wait."""
    workers: int = 4
    """NUMAPLACEMENT_WORKERS: placements worked on at the same time."""
    liveness: str = ""
    """NUMAPLACEMENT_LIVENESS: URL to answer liveness probes at, such as http://0.0.0.0:8080/healthz; empty: none."""
    log_level: str = "INFO"
    """NUMAPLACEMENT_LOG_LEVEL: DEBUG, INFO, WARNING or ERROR."""


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Return the settings of `environ`; what is not given has its default.

    :raises SettingError: a variable holds something that cannot be used.
    """
    rules = Rules(**{each.name: _value(environ, each.name, each.default) for each in fields(Rules)})
    rest = {each.name: _value(environ, each.name, each.default) for each in fields(Settings) if each.name != "rules"}
    settings = Settings(rules=rules, **rest)
    if settings.log_level not in LOG_LEVELS:
        raise SettingError(f"{PREFIX}LOG_LEVEL={settings.log_level!r}: one of {', '.join(LOG_LEVELS)} is needed")
    if settings.liveness and not settings.liveness.startswith("http://"):
        raise SettingError(
            f"{PREFIX}LIVENESS={settings.liveness!r}: a URL such as http://0.0.0.0:8080/healthz is needed"
        )
    return settings


def _value(environ: Mapping[str, str], name: str, default: Any) -> Any:  # noqa: ANN401 - the type is the default's
    variable = PREFIX + name.upper()
    text = environ.get(variable, "").strip()
    if not text:
        return default
    if isinstance(default, str):
        return text
    try:
        number = parse_duration(text) if isinstance(default, float) else int(text)
    except ValueError:
        number = 0
    if number <= 0:
        form = "a duration such as 90s, 5m or 200ms" if isinstance(default, float) else "a whole number from 1"
        raise SettingError(f"{variable}={text!r}: {form} is needed")
    return number
