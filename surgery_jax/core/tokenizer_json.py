"""`tokenizer.json` as the library `tokenizers` writes it: which tokens it has, and with more of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .strict_json import read_json

__all__ = ["TOKENIZER", "Vocabulary", "additions", "grown", "vocabulary_of"]

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer with their ids, and the entries of those that were added to its model."""

    ids: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]]


def vocabulary_of(text: str, rows: int | None = None) -> Vocabulary:
    """The tokens that have a row: those beyond the embedding's `rows`, if it is given, are left out.

    Raises:
        ValueError: the text is no such file.
    """
    body = read_json(text)
    if not isinstance(body, dict) or not isinstance(body.get("model"), dict):
        raise ValueError("it has no model")
    vocab = body["model"].get("vocab")
    if isinstance(vocab, list):  # of pieces and their scores
        vocab = {piece[0]: number for number, piece in enumerate(vocab)}
    if not isinstance(vocab, dict):
        raise ValueError("its model has no vocabulary")
    limit = float("inf") if rows is None else rows
    added = {entry["content"]: entry for entry in body.get("added_tokens") or () if entry["id"] < limit}
    ids = {token: number for token, number in vocab.items() if number < limit}
    return Vocabulary(ids | {token: entry["id"] for token, entry in added.items()}, added)


def additions(
    known: Mapping[str, Vocabulary], donor: str, wanted: Iterable[str], *, union: bool
) -> list[Mapping[str, Any]]:
    """Entries of `added_tokens` that the tokenizer of `donor` lacks, numbered after its own tokens: with `union` what
    others know, and what is wanted beside."""
    ids = dict(known[donor].ids)
    entries: dict[str, Mapping[str, Any]] = {}
    for alias, vocabulary in known.items():
        if union and alias != donor:
            for token in sorted(vocabulary.ids, key=lambda each: (each in vocabulary.added, vocabulary.ids[each])):
                if (token in vocabulary.added and token not in known[donor].added) or token not in ids:
                    entries.setdefault(token, vocabulary.added.get(token, {}))
    entries |= {token: {} for token in wanted if token not in ids and token not in entries}
    after = max(ids.values(), default=-1) + 1
    for token in entries:
        if token not in ids:
            ids[token], after = after, after + 1
    return [{**_ADDED, **entry, "id": ids[token], "content": token} for token, entry in entries.items()]


_ADDED = {
    "id": 0,
    "content": "",
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": True,
    "special": False,
}


def grown(text: str, rows: int, more: Sequence[Mapping[str, Any]]) -> str:
    """The tokenizer without tokens that have no row, and with more of them, given as entries of `added_tokens`; the
    same text if nothing changes.

    Raises:
        ValueError: tokens must go from a model that cannot do without.
    """
    if not more and max(vocabulary_of(text).ids.values(), default=-1) < rows:
        return text
    body = json.loads(text)
    body["added_tokens"] = [entry for entry in body.get("added_tokens") or () if entry["id"] < rows]
    model = body["model"]
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        gone = {token for token, number in vocab.items() if number >= rows}
        if gone and model.get("type") != "BPE":
            raise ValueError(f"a {model.get('type')} model of which tokens have no row")
        model["vocab"] = {token: number for token, number in vocab.items() if token not in gone}
        if gone:
            model["merges"] = [
                merge for merge in model.get("merges", ()) if not gone & {*_parts(merge), _joined(merge)}
            ]
    elif len(vocab) > rows:
        model["vocab"] = vocab[:rows]
    known = {entry["content"] for entry in body["added_tokens"]}
    body["added_tokens"] += [dict(entry) for entry in more if entry["content"] not in known]
    return json.dumps(body, ensure_ascii=False, indent=2) + "\n"


def _parts(merge: str | list[str]) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def _joined(merge: str | list[str]) -> str:
    return "".join(_parts(merge))
