# SPDX-License-Identifier: Apache-2.0
"""Scripts that let a shell complete commands, options, VMs and processes."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = {
    "bash": 'eval "$(numaplace completion bash)" in ~/.bashrc',
    "zsh": 'eval "$(numaplace completion zsh)" in ~/.zshrc, after compinit',
    "fish": "numaplace completion fish > ~/.config/fish/completions/numaplace.fish",
}
"""What to do with each script."""
_NAME, _VARIABLE = "numaplace", "_NUMAPLACE_COMPLETE"


def script(command: click.Command, shell: str) -> str:
    """Return the completion script for a shell."""
    kind = get_completion_class(shell)
    if kind is None:  # pragma: no cover - the three are click's own
        raise click.UsageError(f"Nothing is known of {shell}.")
    made = kind(command, {}, _NAME, _VARIABLE)
    return made.source_template % made.source_vars()
