"""Completion scripts, made from the declarations of commands, transforms and assertions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from shlex import quote

from .command import PROGRAM, Argument, Command, commands

__all__ = ["script"]


def script(shell: str) -> str:
    """The completion script of a shell."""
    lines = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](list(commands().values()))
    return "\n".join(lines) + "\n"


def _words(argument: Argument) -> tuple[str, ...] | None:
    """The words that a value can be, if they are known."""
    if argument.completes == "operation":
        from ..kit.base import words
        from ..kit.predicates import predicates
        from ..merging.method import methods

        return tuple(sorted({*words(), *predicates(), *methods()}))
    return argument.choices or None


def _options(command: Command) -> list[Argument]:
    return [argument for argument in command.arguments if argument.is_option]


def _positional(command: Command) -> Argument | None:
    """What a shell offers where no option is; commands with several positionals take files in all of them."""
    return next((argument for argument in command.arguments if not argument.is_option), None)


# ------------------------------------------------------------------------------------------------------------- bash

_BASH = r"""_surgery_jax() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} kind=none options="" file
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W "@FIRST@" -- "$cur"))
        return
    fi
    case ${COMP_WORDS[1]} in
@COMMANDS@
    esac
    case "${COMP_WORDS[1]} $prev" in
@VALUES@
    *) if [[ $cur == -* ]]; then kind="words $options"; fi ;;
    esac
    case $kind in
    words\ *) COMPREPLY=($(compgen -W "${kind#words }" -- "$cur")) ;;
    file | plan)
        while IFS= read -r file; do
            if [[ $kind == file || -d $file || $file == *.[yY][aA][mM][lL] || $file == *.[yY][mM][lL] ]]; then
                COMPREPLY+=("$file")
            fi
        done < <(compgen -f -- "$cur")
        compopt -o filenames 2>/dev/null
        ;;
    esac
}
complete -F _surgery_jax surgery-jax"""


def _bash(known: Sequence[Command]) -> Iterator[str]:
    def kind(argument: Argument | None) -> str:
        words = None if argument is None else _words(argument)
        if words is not None:
            return f'kind="words {" ".join(words)}"'
        return f"kind={argument.completes or 'none'}" if argument is not None else "kind=none"

    cases, values = [], []
    for command in known:
        options = " ".join(word for option in _options(command) for word in option.spellings)
        cases.append(f'    {command.name}) options="{options} --help"; {kind(_positional(command))} ;;')
        taking = [option for option in _options(command) if option.takes]
        values += [f'    "{command.name} {option.name}") {kind(option)} ;;' for option in taking]
    first = " ".join([*(command.name for command in known), "--help", "--version"])
    yield f"# completion of {PROGRAM} for bash"
    yield (
        _BASH.replace("@FIRST@", first).replace("@COMMANDS@", "\n".join(cases)).replace("@VALUES@", "\n".join(values))
    )


# -------------------------------------------------------------------------------------------------------------- zsh


def _zsh(known: Sequence[Command]) -> Iterator[str]:
    def action(argument: Argument) -> str:
        words = _words(argument)
        if words is not None:
            return f":{argument.takes}:({' '.join(words)})"
        files = {"file": "_files", "plan": '_files -g "*.(yaml|yml)"'}
        return f":{argument.takes}:{files.get(argument.completes, '')}"

    def spec(text: str) -> str:
        return text.replace("[", "(").replace("]", ")").replace(":", ";")

    yield f"#compdef {PROGRAM}"
    yield "_surgery_jax() {"
    yield "    local -a known=(" + " ".join(quote(f"{c.name}:{spec(c.summary)}") for c in known) + ")"
    yield "    if ((CURRENT == 2)); then _describe command known; return; fi"
    yield "    local name=$words[2]; shift words; ((CURRENT--))"
    yield "    case $name in"
    for command in known:
        rows = []
        for option in _options(command):
            value = action(option) if option.takes else ""
            rows += [quote(f"{word}[{spec(option.help)}]{value}") for word in option.spellings]
        rows += [quote(f"*{action(a)}" if a.many else action(a)) for a in command.arguments if not a.is_option]
        yield f"    {command.name}) _arguments " + " ".join(rows) + " ;;"
    yield "    esac"
    yield "}"
    yield "if [[ $zsh_eval_context[-1] == loadautofunc ]]; then"
    yield '    _surgery_jax "$@"'
    yield "else"
    yield f"    compdef _surgery_jax {PROGRAM}"
    yield "fi"


# ------------------------------------------------------------------------------------------------------------- fish


def _fish(known: Sequence[Command]) -> Iterator[str]:
    def text(words: str) -> str:
        return "'" + words.replace("\\", "\\\\").replace("'", "\\'") + "'"

    yield f"# completion of {PROGRAM} for fish"
    yield f"complete -c {PROGRAM} -f"
    yield f"complete -c {PROGRAM} -n __fish_use_subcommand -l help -d 'show help'"
    yield f"complete -c {PROGRAM} -n __fish_use_subcommand -l version -d 'show the version'"
    for command in known:
        yield f"complete -c {PROGRAM} -n __fish_use_subcommand -a {command.name} -d {text(command.summary)}"
        here = f"complete -c {PROGRAM} -n '__fish_seen_subcommand_from {command.name}'"
        for option in _options(command):
            words = _words(option)
            value = f" -x -a {text(' '.join(words))}" if words else " -r" if option.takes else ""
            value += " -F" if option.completes in ("file", "plan") else ""
            for word in option.spellings:
                flag = f"-l {word[2:]}" if word.startswith("--") else f"-s {word[1:]}"
                yield f"{here} {flag}{value} -d {text(option.help)}"
        positional = _positional(command)
        if positional is not None:
            words = _words(positional)
            if words is not None:
                yield f"{here} -a {text(' '.join(words))}"
            elif positional.completes == "plan":
                yield f"{here} -k -a '(__fish_complete_suffix .yaml .yml)'"
            else:
                yield f"{here} -F"
