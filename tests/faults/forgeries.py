"""Damage by somebody who knows the formats: JSON with other values, names or types, tables that the receipt still names
and payloads that the key has signed, journals whose checksums are right, files that are of another run, and what is no
regular file where one should be."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import os
import random
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["forge"]

DEEP: Any = [0]
for _ in range(200):
    DEEP = [DEEP]
HUGE = "a number of 5000 digits"
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1 << 31, 1 << 63, 1 << 64, 10**400, 0.5, -0.0, float("nan"), float("inf"), 1e300, HUGE,
    "", "x", "\0", "\ud800", "\u2028", "..", "../out", "/etc/passwd", "none", "sha256", "0" * 64, "G" * 64,
    "a" * 100_000, [], {}, [[]], [None], {"": None}, {"sha256": "0" * 64}, [["x", "y"]], [-1], [1 << 40, 1 << 40], DEEP,
)  # fmt: skip
HEX = re.compile(r"[0-9a-f]{64}")
DSSE = "application/vnd.in-toto+json"
MOST = 1 << 24  # bytes of a text that is damaged
FRAME = struct.Struct("<II")
FAR = (0, 1, 4095, 1 << 31, 1 << 40, (1 << 64) - 1)


def forge(place: Path, victim: Path, spare: Path, draw: random.Random) -> str:
    """Damage a file below a place in one way, which is named; `spare` has files of other runs."""
    ways: list[Callable[[Path, Path, random.Random], None]] = [_special, _special, _of_another]
    if victim.suffix == ".sig":
        ways += [_envelope] * 6
    elif victim.suffix == ".json":
        ways += [_values] * 6 + [_text] * 3
    elif ".surgery-" in victim.parent.name:
        ways += [_records] * 9
    way = draw.choice(ways)
    with suppress(ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):  # it is damaged already
        way(victim, spare, draw)
    if victim.suffix == ".json" and draw.random() < 0.7:
        for receipt in sorted(place.rglob("*receipt.json")):
            with suppress(ValueError, KeyError, TypeError, IndexError, AttributeError, OSError):
                _name_again(receipt)
    return way.__name__.strip("_")


# ------------------------------------------------------------------------------------------------------------- JSON


def _slots(value: Any) -> Iterator[tuple[Any, Any]]:
    """All places of a JSON value, each a container with a key or number."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, held in items:
        yield value, key
        yield from _slots(held)


def _value(draw: random.Random) -> Any:
    """One of the values, for itself: who gets it may change it."""
    return copy.deepcopy(draw.choice(VALUES))


def _strange(draw: random.Random, value: Any) -> Any:
    """The same with one place changed: another value, one of another place, nothing, or under another name."""
    slots = list(_slots(value))
    if not slots or draw.random() < 0.03:
        return _value(draw)
    box, key = draw.choice(slots)
    how = draw.randrange(8)
    if how < 4:
        box[key] = _value(draw)
    elif how < 6:
        other, at = draw.choice([slot for slot in slots if type(slot[0][slot[1]]) is type(box[key])])
        box[key], other[at] = other[at], box[key]
    elif how == 6:
        del box[key]
    elif isinstance(box, dict):
        box[draw.choice(("", "../x", "\0", "x", "\ud800", *(str(name) for _, name in slots)))] = box.pop(key)
    else:
        box += [box[key]] * draw.choice((1, 3000))
    return value


def _dumped(value: Any) -> str:
    return json.dumps(value, indent=1).replace(f'"{HUGE}"', "9" * 5000)


def _values(victim: Path, spare: Path, draw: random.Random) -> None:
    value = json.loads(victim.read_bytes())
    for _ in range(draw.choice((1, 1, 2, 8))):
        value = _strange(draw, value)
    victim.write_text(_dumped(value)[:MOST])


def _text(victim: Path, spare: Path, draw: random.Random) -> None:
    """A name twice, a digest of another place, or another encoding."""
    text = victim.read_text()
    how = draw.randrange(5)
    if how == 0:
        victim.write_bytes(draw.choice((b"\xef\xbb\xbf", b"\n\r\t ", b"\x00", b"\xff\xfe")) + text.encode())
    elif how == 1:
        victim.write_bytes(text.encode(draw.choice(("utf-16", "utf-32", "utf-16-le", "cp500"))))
    elif how == 2:
        found = draw.choice(list(re.finditer(r'"[^"\n]*": ', text)))
        victim.write_text(
            f"{text[: found.start()]}{found[0]}{json.dumps(draw.choice(VALUES))}, {text[found.start() :]}"
        )
    elif how == 3:
        a, b = (draw.choice(HEX.findall(text)) for _ in range(2))
        victim.write_text(text.replace(a, "@").replace(b, a).replace("@", b))
    else:
        victim.write_text(text + draw.choice((text, "{}", "\0", "x", "]" * 1000, " " * 1_000_000)))


def _name_again(receipt: Path) -> None:
    """Let a receipt name its table, and the files in this, as they are now."""
    table = receipt.with_name("surgery.tensors.json")
    if not all(path.is_file() and path.stat().st_size < MOST for path in (receipt, table)):
        return
    told, raw = json.loads(receipt.read_bytes()), table.read_bytes()
    for product in told["predicate"]["runDetails"]["byproducts"]:
        if product["name"].endswith(".tensors.json"):
            product["digest"]["sha256"] = hashlib.sha256(raw).hexdigest()
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        files = {name: bytes.fromhex(facts["sha256"]) for name, facts in json.loads(raw)["files"].items()}
        root = hashlib.sha256(b"".join(files[name] for name in sorted(files, key=lambda name: name.split("/"))))
        told["subject"][0]["digest"]["sha256"] = root.hexdigest()
    receipt.write_text(_dumped(told))


# ------------------------------------------------------------------------------------------------------- signatures


def _envelope(victim: Path, spare: Path, draw: random.Random) -> None:
    """A bundle with other fields, more signatures, or a statement or a type that the right key has signed."""
    bundle = json.loads(victim.read_bytes())
    envelope = bundle["dsseEnvelope"]
    how = draw.randrange(7)
    if how == 0:
        bundle = _strange(draw, bundle)
    elif how == 1:
        envelope["signatures"] *= draw.choice((0, 2, 100))
    elif how == 2:
        envelope["signatures"][0]["keyid"] = draw.choice(VALUES)
    elif how == 3:
        part = draw.choice((envelope, envelope["signatures"][0]))
        name = "payload" if part is envelope else "sig"
        part[name] = draw.choice(
            (part[name][: draw.randrange(len(part[name]))], part[name] + "=", "\n" + part[name], "é")
        )
    elif how == 4:
        envelope["payloadType"] = draw.choice((*VALUES, DSSE + "; charset=utf-8", "text/plain"))
    else:
        statement = base64.b64decode(envelope["payload"])
        if draw.random() < 0.9:
            statement = _dumped(_strange(draw, json.loads(statement))).encode("utf-8", "surrogatepass")
        elif draw.random() < 0.5:
            statement = draw.randbytes(50)
        envelope["payload"] = base64.b64encode(statement).decode()
        envelope["payloadType"] = kind = draw.choice((DSSE, DSSE, DSSE, "text/plain"))
        if draw.random() < 0.8:
            signature = _signed(victim.parent.parent / "key.pem", kind, statement)
            envelope["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    victim.write_text(_dumped(bundle))


def _signed(key: Path, kind: str, statement: bytes) -> bytes:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    private = load_pem_private_key(key.read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    said = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(statement), statement)
    return private.sign(said, ec.ECDSA(hashes.SHA256()))


# --------------------------------------------------------------------------------------------------------- journals


def _records(victim: Path, spare: Path, draw: random.Random) -> None:
    """Whole records with right checksums: in another order, twice, fewer, with other numbers; or a head of JSON."""
    data, bodies, at = victim.read_bytes(), [], 0
    while at + FRAME.size <= len(data):
        length, _ = FRAME.unpack_from(data, at)
        bodies.append(data[at + FRAME.size : at + FRAME.size + length])
        at += FRAME.size + length
    if not bodies:
        return
    how = draw.randrange(6)
    at = draw.randrange(len(bodies))
    if bodies[0][:1] == b"{":
        bodies[0] = _dumped(_strange(draw, json.loads(bodies[0]))).encode("utf-8", "surrogatepass")
    elif how == 0:
        draw.shuffle(bodies)
    elif how == 1:
        bodies *= draw.choice((2, 50))
    elif how == 2:
        del bodies[at]
    elif how == 3:
        bodies.insert(at, struct.pack("<cQQ", b"S", draw.choice(FAR), draw.choice(FAR)))
    elif how == 4:
        run = struct.pack(
            "<IQQQI", draw.choice((0, 0, 9)), *(draw.choice(FAR) for _ in range(3)), draw.choice((0, 1, 9))
        )
        bodies.insert(at, struct.pack("<cBI", b"T", draw.choice((0, 1, 255)), draw.choice((1, 2, 1 << 31))) + run)
    else:
        bodies[at] = bodies[at][:1] + draw.randbytes(len(bodies[at]) - 1)
    victim.write_bytes(b"".join(FRAME.pack(len(body), zlib.crc32(body)) + body for body in bodies))


# ------------------------------------------------------------------------------------------------- what is no such file


def _of_another(victim: Path, spare: Path, draw: random.Random) -> None:
    """A file of the same name that another run has made."""
    found = sorted(path for path in spare.rglob(victim.name) if path.is_file())
    if found:
        shutil.copyfile(draw.choice(found), victim)


def _special(victim: Path, spare: Path, draw: random.Random) -> None:
    """Nothing, a directory, a link, a pipe, an empty file, or a very long one without bytes."""
    how = draw.randrange(8)
    if how == 7:
        os.truncate(victim, 1 << draw.choice((24, 31, 40)))
        return
    victim.unlink()
    if how == 1:
        victim.mkdir()
    elif how == 2:
        victim.symlink_to(draw.choice((victim.name, "/dev/zero", "/", "../nothing", "/proc/self/mem")))
    elif how == 3:
        os.mkfifo(victim)
    elif how == 4:
        victim.touch()
    elif how == 5:
        victim.mkdir()
        (victim / victim.name).touch()
    elif how == 6:
        os.link(spare / "stray", victim)
