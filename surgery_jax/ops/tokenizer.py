"""`tokenizer`: one vocabulary for several models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeAlias

from ..core.dtypes import BY_NAME, DType
from ..core.errors import Mark, PlanError, listing, nearest
from ..core.specs import Spec
from ..core.tokenizer_json import TOKENIZER, Vocabulary, additions, grown, vocabulary_of
from ..kit.base import Directive, dtype_name, integer, node, pattern, text
from ..kit.fields import parse_bool, parse_int, parse_text
from ..kit.made import Constant
from ..kit.state import State, Value
from ..kit.structure import View
from ..language import document
from ..language.document import Node, Scalar, check_keys, plain
from ..language.slices import Axis, Indices
from .add import Add
from .cast import Cast
from .concat import Concat
from .pad import Pad
from .scale import Scale

UNION, BASE = "union", "base"


@dataclass(frozen=True)
class Wish:
    """Where the row of a token comes from: the token `token` or row `id` of a model, or zeros."""

    model: str | None
    token: str | None
    id: int | None
    force: bool
    mark: Mark

    @classmethod
    def of(cls, token: str, node: document.Mapping) -> Wish:
        """What a step says of a token.

        Raises:
            PlanError: a value is of another kind.
        """
        given = {key: value for key, value in node.entries.items() if plain(value) is not None}
        try:
            words = [parse_text(given[key]) if key in given else None for key in ("model", "token")]
            number = parse_int(given["id"]) if "id" in given else None
            return cls(words[0], words[1], number, "force" in given and parse_bool(given["force"]), node.mark)
        except PlanError as error:
            error.problem = f"token {token!r}: {error.problem}"
            raise


@dataclass
class Members:
    """The models that get a common vocabulary, by alias: what each knows, and where its rows go."""

    known: dict[str, Vocabulary] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Tokenizer(Directive):
    """Give several models one vocabulary: a common tokenizer, and for each model embeddings with its rows.

    `source` is `union` (the tokens of the base, and after them those that only other models have), `base`, or an alias
    whose tokens they are, one of the models or another. A model keeps its row of a token. A token that it lacks gets
    the row of the base; if that lacks it too, of the only model that has it, or the mean of those that do; zeros if
    none does. `tokens` says otherwise for single tokens: { model, token or id }, or { zero: true }, with `force` for
    all models alike; those that the tokenizer lacks are added. Rows of padding get the mean of the others. Tokens
    without a row in a model count as missing there. Rows are moved, means computed in float32.
    """

    word = "tokenizer"
    computes = True
    examples = (
        "tokenizer: { models: { base: base_rows, chat: chat_rows }, rows: '(.+\\.embed_tokens|lm_head)\\.weight', "
        "to: out }",
    )

    models: Node = node("aliases of models, the base first, and of where their rows go", kind="mapping of aliases")
    rows: re.Pattern[str] = pattern("of the tensors whose rows are tokens, the same in all models")
    to: str = text("the alias that gets the tokenizer")
    source: str = text("union, base, or an alias that has a tokenizer", UNION)
    base: str | None = text("the model whose row a token gets that another model lacks; without it there is none", None)
    tokens: Node | None = node("where rows of single tokens come from", None, kind="mapping")
    multiple_of: int = integer("the number of rows is rounded up to a multiple of this", 1)
    dtype: DType | None = dtype_name("of the rows; without it, the widest of the models'", None)

    def build(self, state: State) -> None:
        members, wishes = self._members(state), self._wishes(state)
        first = next(iter(members.known))
        donor = first if self.source in (UNION, BASE) else self.source
        known = members.known
        if donor not in known:  # it gives its tokens, and no rows
            _check_alias(state, donor, self.models, "source")
            known = known | {donor: self._known(state, donor, state.files.document(donor, TOKENIZER))}
        rows = self._rows(state, donor)
        more = additions(known, donor, wishes, union=self.source == UNION)
        told = state.files.document(donor, TOKENIZER) or ""
        try:
            made = grown(told, rows, more)
            final = vocabulary_of(made)
        except ValueError as error:
            raise PlanError(f"tokenizer: {TOKENIZER} of {donor} cannot be used", found=str(error)) from None
        state.files.put_document(self.to, TOKENIZER, made)
        for name in self._names(state, first):
            self._fill(state, members, name, final, wishes)

    def contributes(self, state: State) -> str | None:
        return self.to

    # -- what is known ------------------------------------------------------------------------------------------------

    def _members(self, state: State) -> Members:
        """The models with their vocabularies; one without a tokenizer has that of the first."""
        given = plain(self.models)
        if not isinstance(given, dict) or not given or not all(isinstance(value, str) for value in given.values()):
            raise PlanError("tokenizer.models is a mapping of aliases", where=self.models.mark, found=f"{given!r}")
        members = Members(targets=given)
        for alias, target in given.items():
            _check_alias(state, alias, self.models)
            state.names.expect_new(target, self._names(state, alias))
        for alias in given:
            told = state.files.document(alias, TOKENIZER)
            if told is None and members.known:
                state.speech.warn(
                    f"tokenizer: {alias} has no {TOKENIZER}; it is taken to have the tokens of {next(iter(given))}"
                )
                told = state.files.document(next(iter(given)), TOKENIZER)
            members.known[alias] = self._known(state, alias, told)
        if self.base is not None and self.base not in members.known:
            raise PlanError("tokenizer.base is no model of the step", found=self.base, expected=listing(given))
        return members

    def _known(self, state: State, alias: str, told: str | None) -> Vocabulary:
        """The tokens of a model that have a row, by the text of its tokenizer."""
        if told is None:
            raise PlanError(
                f"tokenizer: {alias} has no {TOKENIZER}",
                where=self.models.mark,
                found=listing(state.files.documents(alias)),
                hint="write one with AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers",
            )
        try:
            return vocabulary_of(told, self._rows(state, alias))
        except (ValueError, KeyError, TypeError) as error:
            raise PlanError(f"tokenizer: {TOKENIZER} of {alias} cannot be read", found=str(error)[:120]) from None

    def _names(self, state: State, alias: str) -> list[str]:
        return [name for name in state.names.of(alias) if self.rows.fullmatch(name)]

    def _rows(self, state: State, alias: str) -> int:
        """How many tokens have a row."""
        counts = [
            state.versions.spec(state.versions.slot(alias, name).node).shape[:1] for name in self._names(state, alias)
        ]
        if not counts or not all(counts):
            raise PlanError(f"tokenizer: no tensor of {alias} has rows that match", found=self.rows.pattern)
        return min(count[0] for count in counts)

    def _wishes(self, state: State) -> dict[str, Wish]:
        """What the step says of single tokens."""
        if self.tokens is None:
            return {}
        if not isinstance(self.tokens, document.Mapping):
            raise PlanError("tokenizer.tokens is a mapping", where=self.tokens.mark)
        found = {}
        for token, value in self.tokens.entries.items():
            if not isinstance(value, document.Mapping):
                raise PlanError(f"tokenizer.tokens: {token!r} is a mapping", where=value.mark)
            check_keys(value, ("model", "token", "id", "zero", "force"), f"token {token!r}")
            wish = Wish.of(token, value)
            if wish.model is None and not parse_bool(value.entries.get("zero", Scalar(False, value.mark))):
                raise PlanError(f"token {token!r} needs model or zero", where=value.mark)
            found[token] = wish
        return found

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _fill(self, state: State, members: Members, name: str, final: Vocabulary, wishes: Mapping[str, Wish]) -> None:
        """The rows of one tensor for every model."""
        before = {alias: state.versions.slot(alias, name, reads=1).node for alias in members.known}
        specs = [state.versions.spec(value) for value in before.values()]
        wide = self.dtype or max((spec.dtype for spec in specs), key=lambda found: found.bits)
        pool = _Pool(state, {alias: _cast(state, value, wide) for alias, value in before.items()})
        count = max(final.ids.values()) + 1
        order = _in_order(final, wishes, count)
        counts = {alias: state.versions.spec(value).shape[0] for alias, value in before.items()}
        sources = [self._default(members.known, counts, token, wish) for token, wish in order]
        for alias, target in members.targets.items():
            ids = members.known[alias].ids
            places = [
                ((alias, ids[token]),) if token in ids and not (wish and wish.force) else source
                for (token, wish), source in zip(order, sources, strict=True)
            ]
            value = pool.taken(places)
            extra = -count % self.multiple_of
            if extra:
                value = state.versions.compute(Pad(after=extra, init="mean").named(name), value)
            state.versions.create(target, name, value)

    def _default(
        self, known: Mapping[str, Vocabulary], counts: Mapping[str, int], token: str, wish: Wish | None
    ) -> Row:
        """The row of a token for models that lack it."""
        if wish is not None:
            return self._wished(known, counts, token, wish)
        having = [(alias, vocabulary.ids[token]) for alias, vocabulary in known.items() if token in vocabulary.ids]
        own = [row for row in having if row[0] == self.base]
        return tuple(own or having)

    def _wished(self, known: Mapping[str, Vocabulary], counts: Mapping[str, int], token: str, wish: Wish) -> Row:
        if wish.model is None:
            return ()
        if wish.model not in known:
            near = nearest(wish.model, known, 1)
            raise PlanError(
                f"token {token!r}: {wish.model} is no model of the step",
                where=wish.mark,
                hint=f"did you mean {near[0]}?" if near else None,
            )
        number = wish.id if wish.id is not None else known[wish.model].ids.get(wish.token or token)
        if number is None:
            raise PlanError(f"token {token!r}: {wish.model} has no token {wish.token or token!r}", where=wish.mark)
        if not 0 <= number < counts[wish.model]:
            raise PlanError(
                f"token {token!r}: {wish.model} has no row {number}",
                where=wish.mark,
                expected=f"0 to {counts[wish.model] - 1}",
            )
        return ((wish.model, number),)


Row: TypeAlias = tuple[tuple[str, int], ...]  # rows of models, of which the mean is taken; of none: zeros


def _in_order(final: Vocabulary, wishes: Mapping[str, Wish], count: int) -> list[tuple[str, Wish | None]]:
    """The tokens by their ids; an id without one has the empty token, which no model has."""
    tokens = [""] * count
    for token, number in final.ids.items():
        tokens[number] = token
    return [(token, wishes.get(token)) for token in tokens]


def _check_alias(state: State, alias: str, where: Node, key: str = "models") -> None:
    if alias not in state.names.aliases():
        near = nearest(alias, state.names.aliases(), 1)
        hint = f"did you mean {near[0]}?" if near else None
        raise PlanError(f"tokenizer.{key}: unknown model alias: {alias!r}", where=where.mark, hint=hint)


def _cast(state: State, value: Value, wanted: DType) -> Value:
    return value if state.versions.spec(value).dtype is wanted else state.versions.compute(Cast(wanted), value)


class _Pool:
    """Rows that are taken from models, one after the other; what is computed is made once."""

    def __init__(self, state: State, values: Mapping[str, Value]) -> None:
        self.state, self.values = state, values

    def taken(self, rows: list[Row]) -> Value:
        """A tensor of these rows."""
        used = dict.fromkeys(row[0][0] for row in rows if len(row) == 1)
        means: dict[tuple[str, ...], dict[Row, None]] = {}
        for row in rows:
            if len(row) > 1:
                means.setdefault(tuple(alias for alias, _ in row), {})[row] = None
        parts = [self.values[alias] for alias in used]
        starts = dict(zip(used, accumulate(map(self._count, parts), initial=0), strict=False))
        at = sum(map(self._count, parts))
        where: dict[Row, int] = {}
        for group in means.values():
            parts.append(self._mean(list(group)))
            where |= {row: at + number for number, row in enumerate(group)}
            at += len(group)
        if () in rows:
            parts.append(self._zeros())
            where[()] = at
        places = tuple(where[row] if row in where else starts[row[0][0]] + row[0][1] for row in rows)
        whole = parts[0] if len(parts) == 1 else self.state.versions.compute(Concat(0), *parts)
        return self._view(whole, places)

    def _spec(self) -> Spec:
        return self.state.versions.spec(next(iter(self.values.values())))

    def _count(self, value: Value) -> int:
        return self.state.versions.spec(value).shape[0]

    def _zeros(self) -> Value:
        spec = self._spec()
        return self.state.versions.compute(Constant(Spec((1, *spec.shape[1:]), spec.dtype), 0.0))

    def _view(self, value: Value, places: tuple[int, ...]) -> Value:
        """Rows of a tensor, in this order."""
        spec = self.state.versions.spec(value)
        axis: Axis = (0, 1, len(places)) if places == tuple(range(len(places))) else Indices(places)
        if axis == (0, 1, spec.shape[0]):
            return value
        rest: list[Axis] = [(0, 1, length) for length in spec.shape[1:]]
        return self.state.versions.compute(View((axis, *rest), (False,) * len(spec.shape)), value)

    def _mean(self, group: list[Row]) -> Value:
        """The means of rows of the same models, in float32 or wider, rounded once."""
        versions, dtype = self.state.versions, self._spec().dtype
        wide = dtype if dtype.bits > 32 else BY_NAME["float32"]
        columns = zip(*group, strict=True)
        total: Value | None = None
        for column in columns:
            part = self._view(self.values[column[0][0]], tuple(number for _, number in column))
            part = _cast(self.state, part, wide)
            total = part if total is None else versions.compute(Add(), total, part)
        assert total is not None
        return _cast(self.state, versions.compute(Scale(1 / len(group[0])), total), dtype)
