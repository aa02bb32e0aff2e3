"""One file per command; `cli.command.commands` finds them."""
