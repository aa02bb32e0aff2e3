"""What PyTorch writes, read without PyTorch: a pickle of tensor descriptions and the bytes of storages.

The pickle is read by `pickles`, so nothing in a file is executed. A storage is a range of a file in the usual case;
then a row-major tensor is just a place in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...core.dtypes import BY_NAME
from ...core.errors import StorageError
from ...core.specs import Spec
from ..base import Blocks, Entry, Extent
from ..bounds import is_possible
from ..files import File
from ..places.found import locate
from .pickles import Built, PickleRefused, Symbol, read_pickle
from .zips import Archive

if TYPE_CHECKING:
    import numpy

__all__ = ["STORAGES", "UNTYPED", "Tensor", "describe", "entry_of", "read_archive", "read_file"]

STORAGES = {  # the storage class of each dtype that has one
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
    "complex64": "ComplexFloatStorage",
}
UNTYPED = (  # the dtypes whose tensors have storages of bytes
    "float8_e5m2",
    "float8_e4m3fn",
    "float8_e5m2fnuz",
    "float8_e4m3fnuz",
    "float8_e8m0fnu",
    "uint16",
    "uint32",
    "uint64",
)
_DTYPES = {name: dtype for dtype, name in STORAGES.items()}
_MAGIC = 0x1950A86A20F9469CFC6C  # of files from before PyTorch 1.6
_MAX_PICKLE = 1 << 26  # bytes of the table of tensors; that of 400 000 tensors


class Unread(NamedTuple):
    """A tensor of a kind that is not read, in words."""

    what: str


@dataclass(slots=True)
class Storage:
    """A row of elements in a file. `offset` is None if its bytes are packed; then `unpack` gives them.

    In a file from before PyTorch 1.6 the offset is set when the pickles are read, since the bytes come after them.
    """

    path: str
    dtype: str | None  # None: bytes
    nbytes: int
    offset: int | None
    unpack: Callable[[], bytes] | None = None


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage: offset and strides in elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


# ------------------------------------------------------------------------------------------ what the pickle may call


def _tensor(
    storage: object, offset: object, shape: object, strides: object, dtype: str | None, bits: object
) -> Tensor | Unread:
    if isinstance(storage, Unread):
        return storage
    if not isinstance(storage, Storage) or dtype is None:
        raise PickleRefused("a tensor without a storage")
    if isinstance(bits, dict) and any(bits.values()):  # it is "the negative of" or "the conjugate of" these bytes
        return Unread("a tensor that is stored conjugated or negated")
    if dtype not in STORAGES and dtype not in UNTYPED:
        return Unread(f"a tensor of {dtype[:80]}")
    (begin,), lengths, steps = _counts((offset,)), _counts(shape), _counts(strides)
    if len(lengths) != len(steps):
        raise PickleRefused("a tensor of impossible shape")
    return Tensor(storage, dtype, begin, lengths, steps)


def _counts(numbers: object) -> tuple[int, ...]:
    """Numbers of 0 or more."""
    if not isinstance(numbers, tuple | list) or any(type(number) is not int or number < 0 for number in numbers):
        raise PickleRefused("a tensor of impossible shape")
    return tuple(numbers)


def _tensor_v2(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    needs_grad: object = None,
    hooks: object = None,
    bits: object = None,
) -> Tensor | Unread:
    return _tensor(storage, offset, shape, strides, getattr(storage, "dtype", None), bits)


def _tensor_v3(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    needs_grad: object,
    hooks: object,
    dtype: object,
    bits: object = None,
) -> Tensor | Unread:
    return _tensor(storage, offset, shape, strides, dtype.name if type(dtype) is Symbol else None, bits)


_REBUILT: Mapping[str, Callable[..., object]] = {
    "torch._utils._rebuild_tensor": _tensor_v2,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
}


def _from_type(function: object, kind: object, args: object, state: object) -> object:
    """A tensor of a class of its own, of which some hold no bytes but other tensors."""
    known = _REBUILT.get(str(function)) if type(function) is Symbol else None
    return known(*args) if known is not None and type(args) is tuple else Unread(f"a tensor of {kind}"[:120])


def _ordered(pairs: object = ()) -> dict[object, object]:
    if not isinstance(pairs, list | tuple) or any(
        type(pair) not in (list, tuple) or len(pair) != 2 or type(pair[0]) not in (str, int) for pair in pairs
    ):
        raise PickleRefused("an OrderedDict of other keys than texts and numbers")
    found: dict[object, object] = dict(pairs)
    if len(found) != len(pairs):
        raise PickleRefused("a key twice in one OrderedDict")
    return found


def _default(factory: object = None) -> dict[object, object]:
    return {}


CALLS: Mapping[str, Callable[..., object]] = {
    **_REBUILT,
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": _default,
    "torch.Size": lambda numbers=(): tuple(numbers),
    "torch._utils._rebuild_parameter": lambda data, *rest: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *rest: data,
    "torch._tensor._rebuild_from_type_v2": _from_type,
}


def _persistent(find: Callable[[str, str | None, int], Storage]) -> Callable[[object], Storage | Unread]:
    """Storages by their persistent id ("storage", class, key, device, number of elements, view)."""
    known: dict[str, Storage] = {}

    def load(pid: object) -> Storage | Unread:
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
            raise PickleRefused("a reference to something that is no storage")
        _, kind, key, _, count, *view = pid
        if type(key) is not str or type(count) is not int or count < 0 or type(kind) is not Symbol:
            raise PickleRefused("a storage without key or size")
        if view and view[0] is not None:
            raise PickleRefused("a storage that is a view of another")
        if kind.name not in _DTYPES and kind.name != "UntypedStorage":
            return Unread(f"a tensor in a {kind}"[:120])
        if key not in known:
            known[key] = find(key, _DTYPES.get(kind.name), count)
        return known[key]

    return load


def _itemsize(dtype: str | None) -> int:
    return 1 if dtype is None else BY_NAME[dtype].itemsize


# ---------------------------------------------------------------------------------------------------------- reading


def read_file(path: Path) -> object:
    """The value of a file that `torch.save` wrote: tensors are `Tensor`s, unknown objects `Built`.

    Raises:
        StorageError: not such a file, or one that needs code to be read.
    """
    with File(path) as file:
        head = file.at(0, min(2, file.size))
        if head == b"PK":
            return read_archive(file)
        if head[:1] == b"\x80":
            return _read_old(file)
    raise StorageError(
        "not a torch file",
        where=str(path),
        expected="a zip archive or a pickle, as torch.save writes them",
        found=f"{file.size} bytes that begin with {head!r}",
    )


def read_archive(file: File, begin: int = 0, length: int | None = None) -> object:
    """The value of a torch zip archive that is a file or a range of one.

    Raises:
        StorageError: see `read_file`.
    """
    archive = Archive(file, begin, length)
    names = [name for name in archive.names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(names) != 1:
        raise archive.refusal("not a torch file", "a zip archive without one 'data.pkl'")
    root = names[0].removesuffix("data.pkl")
    if root + "constants.pkl" in archive.names:
        raise archive.refusal("a TorchScript program is no checkpoint", "save its state_dict instead")
    if root + "byteorder" in archive.names and archive.read(root + "byteorder", 64) != b"little":
        raise archive.refusal("the tensors are not little-endian", "save it again on a usual machine")
    where = str(file.path)

    def find(key: str, dtype: str | None, count: int) -> Storage:
        name = f"{root}data/{key}"
        member = archive.member(name)
        nbytes = count * _itemsize(dtype)
        if member.size != nbytes:
            raise PickleRefused(f"storage {key} has {member.size} bytes, not {nbytes}")
        if member.offset is not None:
            return Storage(where, dtype, nbytes, member.offset)

        def unpack() -> bytes:
            with File(file.path) as again:
                return Archive(again, begin, length).unpack(name, nbytes)

        return Storage(where, dtype, nbytes, None, unpack)

    try:
        return read_pickle(archive.read(names[0], _MAX_PICKLE), CALLS, _persistent(find))[0]
    except PickleRefused as error:
        raise archive.refusal("the table of tensors cannot be read", str(error)) from None


def _read_old(file: File) -> object:
    """Before PyTorch 1.6: five pickles in a row, then for each storage its length and its bytes."""
    wanted: dict[str, tuple[Storage, int]] = {}
    where = str(file.path)

    def find(key: str, dtype: str | None, count: int) -> Storage:
        wanted[key] = Storage(where, dtype, count * _itemsize(dtype), None), count
        return wanted[key][0]

    try:
        with file.mapped() as data:
            magic, at = read_pickle(data, {}, _nothing, 0, 64)
            if magic != _MAGIC:
                raise PickleRefused("a pickle that torch.save did not write")
            _, at = read_pickle(data, {}, _nothing, at, at + 64)
            system, at = read_pickle(data, {}, _nothing, at, at + 4096)
            if not isinstance(system, dict) or system.get("little_endian") is not True:
                raise PickleRefused("tensors that are not little-endian")
            value, at = read_pickle(data, CALLS, _persistent(find), at, at + _MAX_PICKLE)
            keys, at = read_pickle(data, {}, _nothing, at, at + _MAX_PICKLE)
            for key in keys if isinstance(keys, list) else ():
                if key not in wanted:
                    raise PickleRefused(f"storage {key!r} is of a kind that is not known"[:120])
                storage, count = wanted.pop(key)
                if int.from_bytes(data[at : at + 8], "little") != count:
                    raise PickleRefused(f"storage {key} has another length than the table says")
                storage.offset = at + 8
                at += 8 + storage.nbytes
            if at > file.size or wanted:
                raise PickleRefused("the file is cut off")
    except (PickleRefused, LookupError, TypeError, AttributeError) as error:
        raise StorageError("the torch file cannot be read", where=where, found=str(error)[:200]) from None
    return value


def _nothing(pid: object) -> object:
    raise PickleRefused("a storage where there can be none")


# ---------------------------------------------------------------------------------------------------------- entries


def describe(value: object) -> str:
    """What a value is, for a message."""
    if isinstance(value, Unread):
        return value.what
    if isinstance(value, Built | Symbol):
        return f"an object {value.symbol if isinstance(value, Built) else value}"[:120]
    if value is None or isinstance(value, Tensor):
        return "None" if value is None else "a tensor"
    words = {bool: "true or false", int: "a number", float: "a number", str: "a text", bytes: "bytes"}
    return words.get(type(value), "a table" if value else "an empty table")


def entry_of(tensor: Tensor, what: str) -> Entry:
    """A tensor as the engine wants it: a place in a file if it is row-major there, else a loader.

    Raises:
        StorageError: its shape is impossible, or it is not inside of its storage.
    """
    storage = tensor.storage
    dtype = BY_NAME[tensor.dtype]
    spec = Spec(tensor.shape, dtype)
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    if not is_possible(tensor.shape, dtype):
        raise StorageError(f"{what} has an impossible shape", where=storage.path, found=str(list(spec.shape))[:120])
    if spec.size and (last + 1) * dtype.itemsize > storage.nbytes:
        raise StorageError(
            f"{what} lies outside of its storage",
            where=storage.path,
            expected=f"at most {storage.nbytes} bytes",
            found=f"{(last + 1) * dtype.itemsize}",
        )
    if storage.offset is not None and _is_packed(tensor):
        begin = storage.offset + (tensor.offset * dtype.itemsize if spec.size else 0)
        return Entry(spec, Extent(storage.path, begin))
    return Entry(spec, blocks=_whole(tensor, spec, last))


def _is_packed(tensor: Tensor) -> bool:
    expected = 1
    for length, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if length == 0:
            return True
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


def _whole(tensor: Tensor, spec: Spec, last: int) -> Blocks:
    """A tensor that is put together of all bytes between its first and its last, or of its whole storage, unpacked."""
    begin, end = tensor.offset * spec.dtype.itemsize, (last + 1) * spec.dtype.itemsize
    held = end - begin if tensor.storage.offset is not None else 3 * tensor.storage.nbytes
    factor = 1 - (-held // max(spec.nbytes, 1))
    return Blocks(spec.size, spec.size, lambda first, count: _load(tensor, spec, begin, end), factor)


def _load(tensor: Tensor, spec: Spec, begin: int, end: int) -> numpy.ndarray:
    import numpy as np

    dtype = spec.dtype
    if not spec.size:
        return np.zeros(spec.shape, dtype.numpy)
    storage = tensor.storage
    if storage.offset is not None:
        with File(locate(storage.path)) as file:
            data = file.at(storage.offset + begin, end - begin)
    else:
        assert storage.unpack is not None
        data = storage.unpack()[begin:end]
    strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
    view: numpy.ndarray = np.ndarray(spec.shape, dtype.numpy, data, 0, strides)
    return view.copy(order="C")
