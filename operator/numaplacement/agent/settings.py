# SPDX-License-Identifier: Apache-2.0
"""What can be set from outside: each as an option, or as an environment variable, which the option overrides."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from numaplacement import __version__
from numaplacement.api.quantities import parse_duration

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class SettingError(Exception):
    """A setting is missing or cannot be used; the message names it and says what it should look like."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings. Durations are seconds here and written as 90s, 5m or 200ms outside."""

    node_name: str
    """NODE_NAME: the Kubernetes node this agent runs on; orders of other hosts are not touched."""
    progress_interval: float = 2.0
    """NUMAPLACEMENT_PROGRESS_INTERVAL: shortest time between two writes of a move's progress."""
    host_interval: float = 30.0
    """NUMAPLACEMENT_HOST_INTERVAL: how often the host is looked at. Its NumaHost is written when something changed."""
    log_level: str = "INFO"
    """NUMAPLACEMENT_LOG_LEVEL: DEBUG, INFO, WARNING or ERROR."""


def read_settings(arguments: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Return the settings; what neither `arguments` nor `environ` gives has its default.

    ``--help`` and ``--version`` print and raise SystemExit, as does an unknown option.

    :raises SettingError: something required is missing, or a value is of the wrong form.
    """
    given = {name: value for name, value in vars(_parser().parse_args(arguments)).items() if value is not None}
    texts = {field: environ[variable] for field, variable in _VARIABLES.items() if environ.get(variable)} | given
    if not texts.get("node_name"):
        raise SettingError("NODE_NAME is not set: give the agent its node's name (fieldRef spec.nodeName)")
    level = texts.get("log_level", Settings.log_level)
    if level.upper() not in LOG_LEVELS:
        raise SettingError(f"NUMAPLACEMENT_LOG_LEVEL: {level} is none of {', '.join(LOG_LEVELS)}")
    return Settings(
        node_name=texts["node_name"],
        progress_interval=_seconds(texts, "progress_interval", Settings.progress_interval),
        host_interval=_seconds(texts, "host_interval", Settings.host_interval),
        log_level=level.upper(),
    )


_VARIABLES = {
    "node_name": "NODE_NAME",
    "progress_interval": "NUMAPLACEMENT_PROGRESS_INTERVAL",
    "host_interval": "NUMAPLACEMENT_HOST_INTERVAL",
    "log_level": "NUMAPLACEMENT_LOG_LEVEL",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="numaplacement-agent",
        description="Carries out the NumaMigrations of one host and reports what the host has as its NumaHost.",
        epilog="The API server is the one of KUBECONFIG, or else of the pod's service account.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--node-name", metavar="NAME", help="Kubernetes node this agent runs on [NODE_NAME]")
    for field, default, text in (
        ("progress_interval", "2s", "shortest time between two writes of a move's progress"),
        ("host_interval", "30s", "how often the host is looked at"),
    ):
        option = "--" + field.replace("_", "-")
        parser.add_argument(option, metavar="DURATION", help=f"{text} [{_VARIABLES[field]}, default {default}]")
    parser.add_argument("--log-level", metavar="LEVEL", help=f"{', '.join(LOG_LEVELS)} [{_VARIABLES['log_level']}]")
    return parser


def _seconds(texts: Mapping[str, str], field: str, default: float) -> float:
    if field not in texts:
        return default
    try:
        seconds = parse_duration(texts[field])
    except ValueError as error:
        raise SettingError(f"{_VARIABLES[field]}: {error}") from error
    if seconds <= 0:
        raise SettingError(f"{_VARIABLES[field]}: {texts[field]} is not longer than nothing")
    return seconds
