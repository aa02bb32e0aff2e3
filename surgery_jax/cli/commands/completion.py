"""`surgery-jax completion`."""

from __future__ import annotations

from argparse import Namespace

from ..command import Argument, Command
from ..streams import emit

SHELLS = ("bash", "zsh", "fish")


class Completion(Command):
    """Print a completion script for a shell.

    bash: put eval "$(surgery-jax completion bash)" into ~/.bashrc. zsh: the same, into ~/.zshrc after compinit. fish:
    surgery-jax completion fish > ~/.config/fish/completions/surgery-jax.fish
    """

    name = "completion"
    arguments = (Argument("shell", "bash, zsh or fish", "SHELL", choices=SHELLS),)

    def run(self, args: Namespace) -> int:
        from .. import shells

        emit(shells.script(args.shell), end="")
        return 0
