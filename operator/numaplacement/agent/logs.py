# SPDX-License-Identifier: Apache-2.0
"""One line for each thing that happens, in the key=value form that log collectors read (logfmt)."""

from __future__ import annotations

import datetime
import json
import logging
import sys

OWN = "numaplacement"
"""The logger of the whole package."""


class LineFormatter(logging.Formatter):
    """Writes a record, a traceback included, as one line; ``order`` is there when the record is about one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time = datetime.datetime.fromtimestamp(record.created, tz=datetime.UTC)
        fields = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "order": getattr(record, "order", ""),
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return " ".join(f"{key}={_quoted(value)}" for key, value in fields.items() if value)


def _quoted(value: str) -> str:
    plain = value.isprintable() and not any(character in ' "=' for character in value)
    return value if plain else json.dumps(value, ensure_ascii=False)


def set_up(level: str) -> None:
    """Log to standard error: our own records from `level` on, those of libraries from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger(OWN).setLevel(level)


def of_order(log: logging.Logger, *, namespace: str, name: str) -> logging.LoggerAdapter[logging.Logger]:
    """Return `log` with each record marked as being about one order."""
    return logging.LoggerAdapter(log, {"order": f"{namespace}/{name}"})
