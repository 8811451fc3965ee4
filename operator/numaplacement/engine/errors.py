# SPDX-License-Identifier: Apache-2.0
"""What the engine raises."""

from __future__ import annotations


class EngineError(Exception):
    """The engine cannot even look at the process. The message is one sentence that says what to do about it."""
