# SPDX-License-Identifier: Apache-2.0
import json
import logging
import subprocess
import sys

import pytest

from numaplacement.agent.logs import LineFormatter, of_order
from numaplacement.agent.settings import SettingError, Settings, read_settings

NAMED = {"NODE_NAME": "n1"}


def test_the_name_is_enough():
    assert read_settings([], NAMED) == Settings(node_name="n1")


def test_all_from_the_environment():
    given = {
        "NUMAPLACEMENT_PROGRESS_INTERVAL": "500ms",
        "NUMAPLACEMENT_HOST_INTERVAL": "1m",
        "NUMAPLACEMENT_LOG_LEVEL": "debug",
    }
    expected = Settings(node_name="n1", progress_interval=0.5, host_interval=60.0, log_level="DEBUG")
    assert read_settings([], NAMED | given) == expected


def test_an_option_overrides_the_environment():
    arguments = ["--node-name", "n2", "--progress-interval", "3s", "--host-interval", "4s", "--log-level", "ERROR"]
    environ = NAMED | {"NUMAPLACEMENT_PROGRESS_INTERVAL": "9s"}
    expected = Settings(node_name="n2", progress_interval=3.0, host_interval=4.0, log_level="ERROR")
    assert read_settings(arguments, environ) == expected


@pytest.mark.parametrize(
    ("environ", "word"),
    [
        ({}, "NODE_NAME"),
        ({"NODE_NAME": ""}, "NODE_NAME"),
        (NAMED | {"NUMAPLACEMENT_PROGRESS_INTERVAL": "often"}, "NUMAPLACEMENT_PROGRESS_INTERVAL"),
        (NAMED | {"NUMAPLACEMENT_HOST_INTERVAL": "0s"}, "NUMAPLACEMENT_HOST_INTERVAL"),
        (NAMED | {"NUMAPLACEMENT_LOG_LEVEL": "loud"}, "loud"),
    ],
)
def test_what_is_wrong_is_named(environ, word):
    with pytest.raises(SettingError, match=word):
        read_settings([], environ)


@pytest.mark.parametrize(
    ("environ", "word"),
    [
        ({}, "NODE_NAME is not set"),
        ({"NODE_NAME": "n1"}, "KUBECONFIG"),
        ({"NODE_NAME": "n1", "KUBECONFIG": "/none"}, "/none"),
    ],
)
def test_a_misconfigured_agent_says_so_in_one_line_and_ends(environ, word):
    done = subprocess.run(
        [sys.executable, "-m", "numaplacement.agent"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert word in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_help_needs_nothing_heavy():
    script = (
        "import sys\nfrom numaplacement.agent import __main__\nsys.argv = ['agent', '--help']\n"
        "try:\n    __main__.main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'numpy', 'kubernetes', 'pydantic', 'aiohttp', 'asyncio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "NUMAPLACEMENT_PROGRESS_INTERVAL" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def record(message, *, order=("prod", "db-1"), error=None):
    kept = []
    log = logging.getLogger("test of one line")
    handler = logging.Handler()
    handler.emit = kept.append
    log.addHandler(handler)
    try:
        of_order(log, namespace=order[0], name=order[1]).error(message, exc_info=error)
    finally:
        log.removeHandler(handler)
    return LineFormatter().format(kept[0])


def test_a_line_says_which_order():
    line = record('says "hello" to all')
    assert "\n" not in line
    assert " level=error order=prod/db-1 message=" in line
    assert json.loads(line.split("message=", 1)[1]) == 'says "hello" to all'


def test_a_traceback_is_one_line_too():
    try:
        int("two\nlines")
    except ValueError as error:
        line = record("failed", error=error)
    assert "\n" not in line
    assert "Traceback" in line
    assert "message=failed" in line
