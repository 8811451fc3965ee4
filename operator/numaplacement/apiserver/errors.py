# SPDX-License-Identifier: Apache-2.0
"""What a kube-apiserver can answer instead of what was asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping


class ApiError(Exception):
    """The API server refused, or could not be asked. The message says what was tried and what the server said.

    `status` is the HTTP status, 0 when there was no answer at all.
    """

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class NotFound(ApiError):
    """There is no such object (404), or the server does not know the kind."""


class Conflict(ApiError):
    """The object exists already, changed meanwhile, is another one (UID), or another manager owns a field (409)."""


class Unauthorized(ApiError):
    """The server does not accept who we are (401)."""


class Forbidden(ApiError):
    """RBAC or an admission policy does not allow it (403)."""


class Invalid(ApiError):
    """The document breaks the schema or a validation rule (400, 413, 415, 422)."""


class Gone(ApiError):
    """The resource version asked for is no longer kept (410): list again."""


class TooManyRequests(ApiError):
    """The server sheds load (429). `retry_after` is what it asks for, in seconds, 0 when it does not say."""

    def __init__(self, message: str, *, status: int = 429, retry_after: float = 0.0) -> None:
        super().__init__(message, status=status)
        self.retry_after = retry_after


class Unavailable(ApiError):
    """No answer, or none that means anything: connection refused or broken, timeout, 5xx. Trying later may help.

    `retry_after` is what the server asks for, in seconds, 0 when it does not say.
    """

    def __init__(self, message: str, *, status: int = 0, retry_after: float = 0.0) -> None:
        super().__init__(message, status=status)
        self.retry_after = retry_after


TRANSIENT = (TooManyRequests, Unavailable)
"""Errors after which the same call may succeed without anything else changing."""

_BY_STATUS: dict[int, type[ApiError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    413: Invalid,
    415: Invalid,
    422: Invalid,
}
_TOO_MANY_REQUESTS = 429
_SERVER_ERROR = 500


def error_of(status: int, *, action: str, body: bytes | str, headers: Mapping[str, str]) -> ApiError:
    """Return the error for an answer of HTTP status `status`; `action` says what was tried, such as ``get Node n1``.

    The server's own words are the ``message`` of the ``Status`` object in `body`, when it is one.
    """
    message = f"cannot {action}: {_words(body) or 'no reason given'} (HTTP {status})"
    if status == _TOO_MANY_REQUESTS:
        return TooManyRequests(message, retry_after=_seconds(headers.get("Retry-After", "")))
    if status in _BY_STATUS:
        return _BY_STATUS[status](message, status=status)
    if status >= _SERVER_ERROR:
        return Unavailable(message, status=status, retry_after=_seconds(headers.get("Retry-After", "")))
    return ApiError(message, status=status)


def _words(body: bytes | str) -> str:
    text = body.decode(errors="replace") if isinstance(body, bytes) else body
    try:
        document = json.loads(text)
    except ValueError:
        return " ".join(text.split())[:500]
    message = document.get("message") if isinstance(document, dict) else None
    return message if isinstance(message, str) else ""


def _seconds(header: str) -> float:
    return float(header) if header.isdecimal() else 0.0
