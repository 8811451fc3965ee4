# SPDX-License-Identifier: Apache-2.0
"""Settings from the environment."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from dataclasses import fields

import pytest

from numaplacement.controller import settings as module
from numaplacement.controller.settings import Rules, SettingError, Settings, read_settings


def test_defaults() -> None:
    assert read_settings({}) == Settings()
    assert read_settings({"NUMAPLACEMENT_SWEEP": "  "}) == Settings()


def test_all_of_them() -> None:
    environ = {
        "NUMAPLACEMENT_TAKE_UP": "1s",
        "NUMAPLACEMENT_SILENCE": "2s",
        "NUMAPLACEMENT_RETRY": "200ms",
        "NUMAPLACEMENT_RETRY_LIMIT": "1m",
        "NUMAPLACEMENT_HISTORY": "5",
        "NUMAPLACEMENT_SWEEP": "1m30s",
        "NUMAPLACEMENT_STATUS_INTERVAL": "100ms",
        "NUMAPLACEMENT_ERROR_BACKOFF": "3s",
        "NUMAPLACEMENT_ERROR_BACKOFF_LIMIT": "4s",
        "NUMAPLACEMENT_WORKERS": "7",
        "NUMAPLACEMENT_LIVENESS": "http://127.0.0.1:1/healthz",
        "NUMAPLACEMENT_LOG_LEVEL": "DEBUG",
    }
    assert read_settings(environ) == Settings(
        rules=Rules(take_up=1, silence=2, retry=0.2, retry_limit=60, history=5),
        sweep=90,
        status_interval=0.1,
        error_backoff=3,
        error_backoff_limit=4,
        workers=7,
        liveness="http://127.0.0.1:1/healthz",
        log_level="DEBUG",
    )
    named = {f"NUMAPLACEMENT_{each.name.upper()}" for each in (*fields(Settings), *fields(Rules))}
    assert named - {"NUMAPLACEMENT_RULES"} == set(environ)


def test_each_is_documented_under_the_name_it_has_outside() -> None:
    documented = set(re.findall(r"NUMAPLACEMENT_[A-Z_]+(?=:)", inspect.getsource(module)))
    assert documented == {
        f"NUMAPLACEMENT_{each.name.upper()}" for each in (*fields(Settings), *fields(Rules)) if each.name != "rules"
    }


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("NUMAPLACEMENT_SWEEP", "5"),
        ("NUMAPLACEMENT_SWEEP", "0s"),
        ("NUMAPLACEMENT_SWEEP", "-1s"),
        ("NUMAPLACEMENT_SWEEP", "soon"),
        ("NUMAPLACEMENT_RETRY", "1d"),
        ("NUMAPLACEMENT_WORKERS", "0"),
        ("NUMAPLACEMENT_WORKERS", "two"),
        ("NUMAPLACEMENT_WORKERS", "1.5"),
        ("NUMAPLACEMENT_HISTORY", "-1"),
        ("NUMAPLACEMENT_LOG_LEVEL", "LOUD"),
        ("NUMAPLACEMENT_LIVENESS", "0.0.0.0:8080"),
    ],
)
def test_what_cannot_be_used_is_named(variable: str, text: str) -> None:
    with pytest.raises(SettingError) as caught:
        read_settings({variable: text})
    assert variable in str(caught.value)
    assert repr(text) in str(caught.value)
    assert "needed" in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"NUMAPLACEMENT_SWEEP": "soon"}, "NUMAPLACEMENT_SWEEP='soon'"),
        ({}, "set KUBECONFIG"),
        ({"KUBECONFIG": "/nowhere/at/all"}, "/nowhere/at/all"),
    ],
)
def test_a_misconfigured_controller_ends_with_a_sentence(environ: dict[str, str], words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "numaplacement.controller"],
        env={"PATH": "/usr/bin:/bin", **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("numaplacement-controller: ")
