"""Whether `config.json` and the tensors that are written beside it agree, by the tables of `core/model_rules.py`.

`compare` says what a config and tensors say against each other; `check_configs` makes errors of it for a plan, whose
outputs have documents, or appear where a `config.json` lies that stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ..core import json_text
from ..core import model_rules as rules
from ..core.errors import MOST_NAMES, Notice, PlanError, SurgeryError, listing
from ..core.model_config import CONFIG, DEFAULTS, defaults_of, majority_dtype, told_dtypes
from ..core.quantised import can_be_quantised, companions
from ..core.specs import Spec
from ..graph.roots import Save, Symbolic
from ..language.expressions import evaluate
from ..storage.base import Checkpoint
from ..storage.documents import read_document
from ..storage.files import storage_error
from ..storage.formats import OutputPlan
from ..storage.places.found import is_local, locate
from ..storage.targets import MODEL_FILES, final_place

__all__ = ["Discrepancies", "check_configs", "compare"]

_NUMBER = re.compile(r"(?<=\.)[0-9]+(?=\.)")
_WORD = re.compile(r"[a-z]\w*")
Tensors = Sequence[tuple[str, Spec]]


@dataclass
class Discrepancies:
    """What a comparison found: contradictions, a sentence each, and doubts, which are such unless the source had them
    before; and of the matrices, by their names with `#` for numbers, those that no rule reaches, and how many kinds
    there are."""

    contradictions: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)
    kinds: int = 0


def check_configs(
    symbolic: Symbolic, outputs: Sequence[OutputPlan], held: Mapping[str, Checkpoint]
) -> tuple[list[SurgeryError], list[Notice]]:
    """Every contradiction between what a plan writes and the `config.json` beside it, an error for each output; and
    what is told of those that agree. `held` are the checkpoints that the plan has read, by their paths.

    Raises:
        StorageError: a `config.json` cannot be read.
    """
    errors: list[SurgeryError] = []
    notices: list[Notice] = []
    for save, output in zip(symbolic.saves, outputs, strict=True):
        told = _beside(save, output)
        if told is None or save.request.kind == "tensor":
            continue
        which, text = told
        try:
            config = json_text.parsed(text)
        except ValueError as error:
            hint = "write one with the step config or document; --no-config-check takes it as it is"
            wrong_text = PlanError(f"{which} is no JSON object", found=str(error)[:120], hint=hint)
            errors.append(wrong_text.located(save.request.mark))
            continue
        found = compare(config, [(name, node.spec) for name, node in save.tensors], save.documents)
        if found.contradictions or found.doubts:
            before = _said_before(found, held)
            wrong = [*found.contradictions, *(doubt for doubt in found.doubts if doubt not in before)]
            if wrong:
                errors.append(_contradicts(which, wrong, before).located(save.request.mark))
            doubts = [doubt for doubt in found.doubts if doubt in before]
            if doubts:
                notices.append(
                    Notice(f"{which}: {listing(doubts)}, as in {before[doubts[0]]}", where=save.request.mark)
                )
        if found.unreached and not errors:
            few = f"{len(found.unreached)} of {found.kinds} kinds of matrices, such as {listing(found.unreached, 2)}"
            problem = f"{which} is checked against the tensors as far as the rules reach: they know nothing of {few}"
            notices.append(Notice(problem, where=save.request.mark))
    return errors, notices


def _beside(save: Save, output: OutputPlan) -> tuple[str, str] | None:
    """What to call the config that will lie beside an output, and its text: one that is written, or one that stays."""
    document = save.documents.get(CONFIG)
    if document is not None:
        return CONFIG, read_document(locate(document.path)).text if document.text is None else document.text
    final = final_place(output.path)
    place = (final if output.is_directory else final.parent) / CONFIG
    is_model = output.is_directory or final.name in MODEL_FILES
    try:
        if not is_model or output.single or not is_local(final) or not place.is_file():
            return None
    except OSError as error:  # such as a name that is too long for the system
        raise storage_error(error, place, "look at it") from None
    return f"{place}, which is there and stays,", read_document(place).text


def _said_before(found: Discrepancies, held: Mapping[str, Checkpoint]) -> dict[str, str]:
    """Those of the sentences that are true of a checkpoint that the plan reads, and of which."""
    known: dict[str, str] = {}
    for path, checkpoint in held.items():
        if CONFIG not in checkpoint.documents:
            continue
        try:
            config = json_text.parsed(read_document(locate(checkpoint.documents[CONFIG])).text)
        except ValueError:
            continue
        tensors = [(name, entry.spec) for name, entry in checkpoint.entries.items()]
        source = compare(config, tensors, checkpoint.documents)
        for sentence in (*source.contradictions, *source.doubts):
            known.setdefault(sentence, path)
    return known


def _contradicts(which: str, wrong: Sequence[str], before: Mapping[str, str]) -> PlanError:
    old = [sentence for sentence in wrong if sentence in before]
    if len(old) == len(wrong):
        hint = f"it is so in {before[old[0]]} already: set what is true with the step config"
    elif which == CONFIG:
        hint = "let the step config follow what the steps change"
    else:
        hint = "write the documents of the new model, or remove the old ones"
    more = len(wrong) - MOST_NAMES
    return PlanError(
        f"{which} contradicts the tensors: {wrong[0]}",
        found="; ".join(wrong[1:MOST_NAMES]) + (f" and {more} more" if more > 0 else "") or None,
        hint=f"{hint}; --no-config-check writes it as it is",
    )


def compare(config: Mapping[str, Any], tensors: Tensors, documents: Iterable[str] = ()) -> Discrepancies:
    """What a config and the tensors of a model say against each other; `documents` are the names of all that lies
    beside them."""
    found = Discrepancies()
    sizes = _Sizes(_text(config))
    told = dict.fromkeys(_shapes(sizes, tensors, found))
    told |= dict.fromkeys(_counts(sizes, [name for name, _ in tensors], found))
    told |= dict.fromkeys([*_lists(sizes), *_dtypes(config, tensors)])
    told |= dict.fromkeys(_quantised(config, tensors, documents))
    found.contradictions = list(told)
    found.doubts += _tied(config, tensors)
    return found


def _text(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that tell of the language model, with what its architecture takes for granted."""
    nested = next((config[key] for key in rules.TEXT if isinstance(config.get(key), Mapping)), None)
    found = dict(config if nested is None else nested)
    kind = found.get("model_type")
    found |= defaults_of(kind, found) if isinstance(kind, str) and kind in DEFAULTS else {}
    varied = {word for key in rules.VARIED for word in _words_below(found.get(key))}
    return found | dict.fromkeys(varied, "varied")


def _words_below(value: Any) -> Iterator[str]:
    """The keys of all mappings in a value."""
    if isinstance(value, Mapping):
        yield from value
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _words_below(item)


class _Sizes:
    """The sizes that a config tells of, each with the words that say where it is from."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self._known: dict[str, tuple[int, str] | None] = {}

    def of(self, expression: str) -> tuple[int, str] | None:
        """The value of an expression over sizes and keys, and the words; None if it needs one that is not known."""
        words = dict.fromkeys(_WORD.findall(expression))
        known = {word: self._word(word) for word in words}
        if not all(known.values()):
            return None
        parts = {word: value for word, value in known.items() if value is not None}
        value = evaluate(expression, {word: number for word, (number, _) in parts.items()})
        told = _WORD.sub(lambda match: parts[match[0]][1], expression)
        return value, told.replace("*", " * ").replace("//", " / ").replace("+", " + ")

    def tells(self, expression: str) -> bool:
        """Whether the config has all keys that an expression names itself."""
        words = _WORD.findall(expression)
        return all(word in rules.SIZES or self._word(word) is not None for word in words)

    def _word(self, word: str) -> tuple[int, str] | None:
        if word not in self._known:
            self._known[word] = None
            alternatives = rules.SIZES.get(word)
            if alternatives is None:
                value = _number(self.config.get(word))
                self._known[word] = None if value is None else (value, f"{word} ({value})")
            else:
                found = self._first(alternatives)
                is_sum = found is not None and found[1].count("(") > 1
                self._known[word] = (found[0], f"({found[1]})") if found is not None and is_sum else found
        return self._known[word]

    def _first(self, alternatives: Sequence[str]) -> tuple[int, str] | None:
        """What the first alternative says that says anything; a key that is no one number leaves it open."""
        for alternative in alternatives:
            found = self.of(alternative)
            if found is not None or self.config.get(alternative) is not None:
                return found
        return None


def _number(value: Any) -> int | None:
    """A whole number, also if every layer has the same one."""
    if isinstance(value, list) and value and all(item == value[0] for item in value):
        value = value[0]
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


# -- shapes -------------------------------------------------------------------------------------------------------


def _shapes(sizes: _Sizes, tensors: Tensors, found: Discrepancies) -> Iterator[str]:
    kinds: dict[tuple[str, tuple[int, ...]], int] = {}
    for name, spec in tensors:
        if spec.dtype.is_float and spec.dtype.bits >= 8:
            kind = _NUMBER.sub("#", name), spec.shape
            kinds[kind] = kinds.get(kind, 0) + 1
    for (name, shape), count in kinds.items():
        rule = _rule(name)
        is_matrix = len(shape) > 1
        found.kinds += is_matrix
        if rule is None or any(sizes.config.get(key) for key in rule.unless):
            found.unreached += [name] if is_matrix else []
            continue
        alternatives = [
            [None if part == "_" else sizes.of(part) for part in told.split()]
            for told in rule.shapes
            if sizes.tells(told)
        ]
        if is_matrix and not any(any(axes) for axes in alternatives):
            found.unreached.append(name)
        if alternatives and not any(_fits(shape, axes) for axes in alternatives):
            yield _misfit(name, shape, count, alternatives)


Axes = Sequence[tuple[int, str] | None]


def _fits(shape: tuple[int, ...], axes: Axes) -> bool:
    return len(shape) == len(axes) and all(
        axis is None or axis[0] == length for axis, length in zip(axes, shape, strict=True)
    )


def _misfit(name: str, shape: tuple[int, ...], count: int, alternatives: Sequence[Axes]) -> str:
    which = f"{name} ({count} tensors)" if count > 1 else name
    axes = max(alternatives, key=lambda each: _likeness(shape, each))
    if len(axes) != len(shape):
        return f"{which} has the shape {list(shape)}, not {len(axes)} axes"
    wrong = [
        f"{length} along axis {number}, but {axis[1]} is {axis[0]}" if _is_sum(axis[1]) else
        f"{length} along axis {number}, but {axis[1].split(' ')[0]} is {axis[0]}"
        for number, (length, axis) in enumerate(zip(shape, axes, strict=True)) if axis is not None and axis[0] != length
    ]  # fmt: skip
    return f"{which} has {'; '.join(wrong)}"


def _is_sum(words: str) -> bool:
    return words.count("(") > 1 or words[0].isdigit()


def _likeness(shape: tuple[int, ...], axes: Axes) -> int:
    if len(shape) != len(axes):
        return -1
    return sum(axis is None or axis[0] == length for axis, length in zip(axes, shape, strict=True))


@cache
def _rule(name: str) -> rules.Rule | None:
    """The rule for a name with `#` for numbers."""
    if re.fullmatch(rules.OTHERS, name):
        return None
    return next((rule for rule in rules.RULES if re.fullmatch(rf"(?:.*\.)?{rule.names}", name)), None)


# -- numbers of layers and experts --------------------------------------------------------------------------------


def _counts(sizes: _Sizes, names: Sequence[str], found: Discrepancies) -> Iterator[str]:
    stems: dict[str, set[int]] = {}  # what stands before a number: the numbers
    for name in names:
        for match in _NUMBER.finditer(name):
            stems.setdefault(name[: match.start() - 1], set()).add(int(match[0]))
    told: dict[str, str] = {}
    for stem, numbers in stems.items():
        known = _NUMBER.sub("#", stem + ".")[:-1]
        wanted = _numbered(known)
        options = [option for option in map(sizes.of, wanted) if option is not None]
        if not options or any(numbers == set(range(value)) for value, _ in options):
            continue
        if len(numbers) != max(numbers) + 1:
            missing = min(set(range(max(numbers))) - numbers)
            told.setdefault(known, f"{known} has a gap: there is no number {missing} before {max(numbers)}")
        else:
            value, key = options[0][0], options[0][1].split(" ")[0]
            problem = f"{stem} is numbered up to {max(numbers)}, but {key} is {value}"
            if value % len(numbers):
                told.setdefault(known, problem)
            elif known not in told:  # layers may be run several times
                found.doubts.append(problem)
    yield from told.values()


@cache
def _numbered(stem: str) -> tuple[str, ...]:
    """The sizes that say how many there are of what is numbered."""
    if re.fullmatch(rules.OTHERS, stem):
        return ()
    return next((sizes for names, sizes in (*rules.LAYERS, rules.NUMBERED) if re.fullmatch(names, stem)), ())


def _lists(sizes: _Sizes) -> Iterator[str]:
    """Lists and numbers that speak of single layers."""
    layers = sizes.of("layers")
    if layers is None:
        return
    count, key = layers[0], layers[1].split(" ")[0]
    more = sizes.of("num_nextn_predict_layers")
    for name in rules.PER_LAYER:
        value = sizes.config.get(name)
        if isinstance(value, list) and len(value) not in (0, count, count + (more[0] if more else 0)):
            yield f"{name} has {len(value)} values, but {key} is {count}"
    for name in rules.PLACES:
        value = sizes.config.get(name)
        beyond = (
            [place for place in value if isinstance(place, int) and place >= count] if isinstance(value, list) else []
        )
        if beyond:
            yield f"{name} names layer {beyond[0]}, but {key} is {count}"
    for name, switch in rules.COUNTED.items():
        value = _number(sizes.config.get(name))
        if value is not None and value > count and sizes.config.get(switch) is True:
            yield f"{name} is {value}, but {key} is {count}"


# -- the rest -----------------------------------------------------------------------------------------------------


def _tied(config: Mapping[str, Any], tensors: Tensors) -> Iterator[str]:
    text = _text(config)
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    head, embedding = (next((name for name, _ in tensors if re.fullmatch(names, name)), None) for names in rules.TIED)
    if tied is True and head is not None and embedding is not None:
        yield f"tie_word_embeddings is true, but {head} is there beside {embedding}"
    if tied is False and head is None and embedding is not None and _has_head(config):
        missing = "embed_out" if embedding.endswith("embed_in.weight") else "lm_head"
        yield f"tie_word_embeddings is false, but beside {embedding} there is no {missing}.weight"


def _has_head(config: Mapping[str, Any]) -> bool:
    """Whether the model says that it predicts tokens."""
    names = config.get("architectures")
    return isinstance(names, list) and any("ForCausalLM" in str(name) for name in names)


def _dtypes(config: Mapping[str, Any], tensors: Tensors) -> Iterator[str]:
    found = majority_dtype(spec for _, spec in tensors)
    for key, value in told_dtypes(config):
        if found is not None and value != found and "." not in key:
            yield f"{key} is {value}, but the tensors are {found}"


def _quantised(config: Mapping[str, Any], tensors: Tensors, documents: Iterable[str]) -> Iterator[str]:
    told = next(((key, config[key]) for key in rules.QUANTISATION if isinstance(config.get(key), Mapping)), None)
    if told is None:
        scaled = companions((name, spec.dtype) for name, spec in tensors)
        if scaled and not any("quant" in name for name in documents):
            name, scale = next(iter(scaled.items()))
            yield f"{name} is quantised, by {scale}, but there is no quantization_config"
    elif told[1].get("quant_method") not in rules.ON_LOAD:
        narrow = any(can_be_quantised(spec.dtype) and len(spec.shape) > 1 for _, spec in tensors)
        if tensors and not narrow:
            yield f"there is {told[0]}, but no tensor is quantised"
