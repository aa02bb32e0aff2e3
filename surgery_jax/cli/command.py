"""How a command is declared. Parsing, help and completion scripts are all made from the declarations.

A command is one file of `cli.commands` with one `Command` subclass. This module and those files import nothing heavy at
the top, so that help and mistakes in the command line are answered at once.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from ..core.errors import PlanError, nearest

if TYPE_CHECKING:
    from ..execute.options import Options
    from ..language.plan import Plan

__all__ = ["Argument", "Command", "PlanCommand", "commands", "options_of", "parse"]

PROGRAM = "surgery-jax"


@dataclass(frozen=True)
class Argument:
    """One option (its name begins with dashes) or positional argument.

    takes: the word for its value in help; an option without one is a switch, and with `negated` there is `--no-...`
    too. completes: what a shell offers: `plan`, `file`, `operation` or nothing. many: an option that may be given more
    than once, or a positional argument of any number; optional: of a positional argument. short: another word for an
    option, of one letter.
    """

    name: str
    help: str
    takes: str = ""
    completes: str = ""
    choices: tuple[str, ...] = ()
    default: Any = None
    parse: Callable[[str], Any] = str
    many: bool = False
    optional: bool = False
    negated: bool = False
    short: str = ""

    @property
    def is_option(self) -> bool:
        """Whether it is no positional argument."""
        return self.name.startswith("-")

    @property
    def spellings(self) -> tuple[str, ...]:
        """The words of an option."""
        words = (self.name, f"--no-{self.name[2:]}") if self.negated else (self.name,)
        return (self.short, *words) if self.short else words


class Command:
    """One command. The first paragraph of the docstring is its help."""

    name: ClassVar[str]
    arguments: ClassVar[tuple[Argument, ...]] = ()

    def run(self, args: argparse.Namespace) -> int:
        """Do it, print the result, and give the exit code.

        Raises:
            SurgeryError: what went wrong.
        """
        raise NotImplementedError

    def more_help(self, words: Sequence[str]) -> str:
        """What help says at its end of the other words of the command line."""
        return ""

    @property
    def summary(self) -> str:
        """One line of help."""
        return " ".join((self.__doc__ or "").split("\n\n")[0].split()).rstrip(".")


def commands() -> Mapping[str, Command]:
    """Every command by name, sorted."""
    package = f"{__package__}.commands"
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
    kinds = [kind for kind in (*Command.__subclasses__(), *PlanCommand.__subclasses__()) if kind is not PlanCommand]
    return dict(sorted((kind.name, kind()) for kind in kinds))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise PlanError(message, hint=f"{self.prog} --help")


def parse(command: Command, words: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command, options and others in any order.

    Raises:
        PlanError: they are wrong.
        SystemExit: help was asked for.
    """
    paragraphs = (command.__doc__ or "").split("\n\n")
    parser = _Parser(
        prog=f"{PROGRAM} {command.name}",
        description="\n\n".join(textwrap.fill(" ".join(part.split()), 100) for part in paragraphs),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for argument in command.arguments:
        _add(parser, argument)
    if {"-h", "--help"} & set(words):
        parser.epilog = command.more_help(words)
    return parser.parse_intermixed_args(list(words))


_NARGS = {(False, False): None, (False, True): "?", (True, False): "+", (True, True): "*"}  # many, optional


def _add(parser: argparse.ArgumentParser, argument: Argument) -> None:
    options: dict[str, Any] = {"help": argument.help.replace("%", "%%")}
    if argument.negated:
        options |= {"action": argparse.BooleanOptionalAction, "default": argument.default}
    elif argument.is_option and not argument.takes:
        options |= {"action": "store_true"}
    else:
        options |= {"default": argument.default, "type": _checked(argument), "metavar": argument.takes}
        if argument.is_option and argument.many:
            options |= {"action": "append", "default": []}
        if not argument.is_option:
            options["nargs"] = _NARGS[argument.many, argument.optional]
    parser.add_argument(*filter(None, (argument.short, argument.name)), **options)


def _checked(argument: Argument) -> Callable[[str], Any]:
    """The parser of a value; its complaints become those of argparse."""

    def parse_value(word: str) -> Any:
        if argument.choices and word not in argument.choices:
            near = nearest(word, argument.choices, 1)
            more = f"; did you mean {near[0]}?" if near else ""
            raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(argument.choices)}{more}")
        try:
            return argument.parse(word)
        except PlanError as error:
            expected = f"; expected {error.expected}" if error.expected else ""
            raise argparse.ArgumentTypeError(error.problem + expected) from None
        except ValueError:
            raise argparse.ArgumentTypeError(f"{word!r} is no {argument.takes.lower()}") from None

    return parse_value


# ------------------------------------------------------------------------------------- what several commands share


def _size(word: str) -> str:
    from ..core.specs import parse_size

    parse_size(word, binary=True)
    return word


def words(text: str) -> dict[str, Any]:
    """Parse `key=value,key=value`; values in brackets are those of YAML, such as `mesh={fsdp: 16}`."""
    found: dict[str, Any] = {}
    for item in _items(text):
        key, separator, value = item.partition("=")
        key, value = key.strip(), value.strip()
        if not (separator and key and value):
            raise ValueError(f"not KEY=VALUE: {item!r}")
        found[key] = _value(value) if value[0] in "[{" else value
    return found


def _items(text: str) -> Iterator[str]:
    """What stands between commas that are in no brackets and no quotes."""
    begin, depth, quote = 0, 0, ""
    for at, character in enumerate(text):
        if quote or character in "'\"":
            quote = "" if character == quote else quote or character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and not depth:
            yield text[begin:at]
            begin = at + 1
    yield text[begin:]


def _value(text: str) -> object:
    from ..language.document import parse_yaml
    from ..language.nodes import plain

    return plain(parse_yaml(text, "--options", interpolate=False))


def shard_size(word: str) -> str:
    """A size as plans spell it."""
    from ..core.specs import parse_size

    parse_size(word)
    return word


def whole(word: str) -> int:
    """A whole number that is not negative."""
    number = int(word)
    if number < 0:
        raise ValueError
    return number


PLANS = Argument(
    "items", "plan files and key=value overrides, merged from left to right", "PLAN", completes="plan", many=True
)
SET = Argument("--set", "a parameter or variable of the plan, as key=value does", "KEY=VALUE", many=True)
PARAMS = Argument(
    "--params", "a YAML file with values of parameters; key=value comes after it", "FILE", completes="file"
)
MEMORY = Argument("--memory", "budget of host buffers, such as 2GiB (default), or none", "SIZE", parse=_size)
WORKERS = Argument("--workers", "threads; 0 (default): as many as suit the machine", "N", parse=whole)
DEVICES = Argument("--devices", "use only the first N devices; 0 (default): all", "N", parse=whole)
DEVICE_MEMORY = Argument("--device-memory", "budget of a device, such as 16GiB, or none (default)", "SIZE", parse=_size)
CACHE = Argument(
    "--cache", "keep what is read of remote inputs in this directory of the machine", "DIR", completes="file"
)
CACHE_SIZE = Argument(
    "--cache-size", "the most that is kept there, such as 20GiB (default), or none", "SIZE", parse=_size
)
SHARD_SIZE = Argument(
    "--shard-size",
    "largest shard of a directory that names none, such as 5GB (default), or none",
    "SIZE",
    parse=shard_size,
)
OVERWRITE = Argument("--overwrite", "replace outputs that exist")
CONFIG_CHECK = Argument(
    "--config-check",
    "refuse to write a config.json that contradicts the tensors beside it (default)",
    default=True,
    negated=True,
)
SYNC = Argument("--sync", "bring the outputs to the disk before they appear (default)", default=True, negated=True)
RESUME = Argument("--resume", "go on with what a run of the same plan on the same inputs has finished")
REUSE = Argument(
    "--reuse",
    "take over from this earlier output the tensors that would come out the same: a directory with its receipt, or the "
    "receipt that lies beside a file",
    "OUTPUT",
    completes="file",
)
QUIET = Argument("--quiet", "no progress and no account on stderr")
JSON = Argument("--json", "one JSON object on stdout instead of text")
FILTER = Argument(
    "--filter", "only tensors whose names contain a match of this regular expression", "REGEX", default=""
)
RECEIPT = Argument(
    "--receipt", "write the receipt of the output to this new file, with its table beside it", "PATH", completes="file"
)
NO_RECEIPT = Argument("--no-receipt", "write no receipts, which directories get otherwise")
DIGEST = Argument(
    "--digest",
    "what tensors are known by in receipts: blake3, sha256, none, or auto (default): blake3 if it is installed",
    "KIND",
    choices=("auto", "blake3", "sha256", "none"),
    default="auto",
)
SIGN = Argument("--sign", "sign outputs and receipts with this private key, a PEM file", "KEY", completes="file")
STRICT = Argument("--strict", "a tensor of an input that is neither used nor dropped is an error")
PUBLIC_KEY = Argument("--public-key", "the key that signatures must be of, a PEM file", "KEY", completes="file")
CLUSTER = (
    Argument("--distributed", "share the work with the other processes of the cluster, which run the same command"),
    Argument("--coordinator", "where process 0 can be reached, if JAX cannot tell from the cluster", "HOST:PORT"),
    Argument("--num-processes", "how many processes there are", "N", parse=whole),
    Argument("--process-id", "which of them this is, from 0", "I", parse=whole),
    Argument(
        "--join-timeout",
        "within how many seconds all must have come together (default 300)",
        "SECONDS",
        parse=float,
    ),
)
SIMULATE = Argument(
    "--simulate",
    "predict it on machines such as hosts=64,devices=4,storage=10GB/s,network=2GB/s,compute=50GB/s, and run nothing",
    "MACHINES",
)
PROOF = (RECEIPT, NO_RECEIPT, DIGEST, SIGN)
BUDGETS = (MEMORY, WORKERS, DEVICES, DEVICE_MEMORY, CACHE, CACHE_SIZE)
PLAN = (PLANS, SET, PARAMS)


class PlanCommand(Command):
    """A command that takes a plan, by the arguments of `PLAN`."""

    def more_help(self, words: Sequence[str]) -> str:
        from .parameters import described

        return "\n\n".join(filter(None, map(described, words)))

    def plan(self, args: argparse.Namespace) -> Plan:
        """The plan that the command line gives.

        Raises:
            PlanError: what is wrong with it.
        """
        from ..api import load_plan
        from ..language.merge import is_override

        for word in args.set:
            if not is_override(word):
                raise PlanError("--set takes a key and its value", expected="--set key=value", found=word[:80])
        return load_plan(*args.items, *args.set, params=args.params)


def options_of(args: argparse.Namespace) -> Options:
    """The options of a run that the command line gives; the others keep their defaults.

    Raises:
        PlanError: some of them contradict each other.
    """
    from dataclasses import fields

    from ..execute.options import Options

    given = {field.name: getattr(args, field.name, None) for field in fields(Options)}
    if hasattr(args, "no_receipt"):
        given |= {"receipt": not args.no_receipt, "receipt_path": getattr(args, "receipt", None)}
        if args.no_receipt and given["receipt_path"] is not None:
            raise PlanError("--receipt and --no-receipt contradict each other")
    return Options(**{name: value for name, value in given.items() if value is not None})
