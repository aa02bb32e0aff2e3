r"""What the parameters of a model are, as far as their names and shapes and those of their neighbours tell.

PEFT goes by the class of a module, which a checkpoint does not hold: an embedding and a linear module both have a
`weight` of two axes, but other factors; `Conv1D` of GPT-2 stores its weight as [in, out]; a router of transformers 5 is
a parameter, not a linear module. Evidence is weighed here; where there is none, the plan is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from ..core import adapters
from ..core.specs import Spec
from ..kit.state import Value

__all__ = ["Said", "Weight", "is_token_embedding", "names_embedding", "one_by_one", "sorted_out"]

_TABLES = ("embedding", "position", "unknown")
FACTORED = ("linear", "router", "experts")  # kinds that get factors; embeddings get them if the plan wants it
TOKENS = (  # embeddings that outputs may share
    "embed_tokens", "wte", "embed_in", "tok_embeddings", "word_embeddings", "token_embedding", "shared", "embeddings",
)  # fmt: skip
_EMBEDDING = re.compile(
    r"embed_tokens\w*|embed_positions|embed_in|wte|wpe|shared|relative_attention_bias|embeddings?|embed|emb"
    r"|(?!patch|time)\w+_embeddings?|(tok|token|word|pos|position|type|segment)_emb(ed)?"
)
_MAY_EMBED = re.compile(r".*(emb|vocab|codebook|lookup|table|bias|(token|position)s?$|(^|_)pos$).*")
_POSITIONS = ("embed_positions",)  # BART, OPT, Whisper, ...: PEFT would look up the change by what the module is given
_PROJECTION = re.compile(r"patch_emb\w*|.*(proj|project|projector|projection|linear|dense|fc|out|mapping\w*)\d*")
ROUTERS = ("gate", "router")
_ONE_BY_ONE = re.compile(r"(?P<layer>(?:.+\.)?experts)\.\d+\.(?P<part>.+)")
_PARALLEL = ("input_linear", "output_linear")  # modules of experts whose parameter is called weight
IN_OUT, OUT_IN = True, False  # how a weight is stored


@dataclass(frozen=True, eq=False)
class Weight:
    """One parameter of the model, `name`, in both checkpoints.

    kind: `linear`, `router` (a matrix that is a parameter of the module that routes to experts), `experts` (a matrix
    for each), `embedding`, `position` (an embedding that looks for positions in what it is given), `bias` (of a linear
    module), `norm` (of a module of vectors alone), `convolution`, `other`; `unknown`: an embedding or linear.
    is_in_out: whether matrices are stored as [in, out]; None: nothing tells. why: what else there is to say of an
    `other`.
    """

    name: str
    base: Value
    tuned: Value
    kind: str = "other"
    is_in_out: bool | None = OUT_IN
    why: str = ""

    @property
    def spec(self) -> Spec:
        """Shape and dtype in the base."""
        assert self.base.spec is not None
        return self.base.spec

    @property
    def new(self) -> Spec:
        """Shape and dtype in the fine-tune."""
        assert self.tuned.spec is not None
        return self.tuned.spec

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in both."""
        return self.spec.shape

    @property
    def module(self) -> str:
        """The path of the module; empty for a parameter of the model itself."""
        return self.name.rpartition(".")[0]

    @property
    def leaf(self) -> str:
        """The name within the module."""
        return self.name.rpartition(".")[2]

    @property
    def word(self) -> str:
        """The name of the module within its parent."""
        return self.module.rpartition(".")[2]

    @property
    def parent(self) -> str:
        """The path of the module around the module."""
        return self.module.rpartition(".")[0]

    @property
    def parameter(self) -> str:
        """What PEFT must be told as a parameter, because its module is not linear; empty if it is."""
        return self.leaf if self.kind in ("experts", "router") else ""

    @property
    def is_matrix(self) -> bool:
        """Whether there are numbers in two axes or more that can be factored."""
        specs = (self.spec, self.new)
        return all(s.dtype.is_float and bool(s.dtype.array) and len(s.shape) > 1 and 0 not in s.shape for s in specs)


@dataclass(frozen=True)
class Said:
    """What the plan says of kinds, where it says anything: patterns of modules (for `expert`, of parameters), and how
    matrices are stored."""

    embedding: Sequence[re.Pattern[str]] = ()
    linear: Sequence[re.Pattern[str]] = ()
    expert: Sequence[re.Pattern[str]] = ()
    fan_in_fan_out: bool | None = None
    experts_in_out: bool | None = None


def is_token_embedding(entry: Weight) -> bool:
    """Whether the outputs of a model may be computed with this embedding."""
    return entry.word in TOKENS


def names_embedding(path: str) -> bool:
    """Whether a module of this path is an embedding, as far as its name tells."""
    return _EMBEDDING.fullmatch(path.rpartition(".")[2]) is not None


def one_by_one(entry: Weight) -> tuple[str, str] | None:
    """(path of the experts of a layer, name within the expert) of a linear module of one of several experts.

    Programs that hold the experts of a layer as one tensor stack the factors of these.
    """
    found = _ONE_BY_ONE.fullmatch(entry.module) if entry.kind == "linear" else None
    return (found["layer"], found["part"]) if found else None


def sorted_out(entries: Sequence[Weight], said: Said) -> list[Weight]:
    """The entries with their kinds."""
    around = _Around(entries)
    found = []
    for entry in entries:
        kind, why = _kind(entry, around, said)
        found.append(replace(entry, kind=kind, why=why))
    return found


class _Around:
    """What lies beside a parameter."""

    def __init__(self, entries: Sequence[Weight]) -> None:
        self.specs = {entry.name: entry.spec for entry in entries}
        self.parents = {path for entry in entries for path in _ancestors(entry.module)}
        self.widest: dict[str, int] = {}  # module -> most axes of its parameters
        self.experts: dict[str, int] = {}  # path of experts -> how many there are
        self.are_fused: set[str] = set()
        for entry in entries:
            self.widest[entry.module] = max(self.widest.get(entry.module, 0), len(entry.shape))
            self._count(entry)

    def _count(self, entry: Weight) -> None:
        layer, _, rest = entry.module.partition(".experts.")
        number = rest.partition(".")[0]
        if number.isdecimal():
            path = f"{layer}.experts"
            self.experts[path] = max(self.experts.get(path, 0), int(number) + 1)
        elif entry.module.endswith(".experts") and len(entry.shape) == 3:
            self.experts[entry.module] = entry.shape[0]
            self.are_fused.add(entry.module)

    def has_bias(self, entry: Weight) -> bool:
        spec = self.specs.get(f"{entry.module}.bias")
        return spec is not None and len(spec.shape) == 1

    def routes(self, entry: Weight) -> bool:
        """Whether the entry is the weight of a router, which in transformers 5 is a parameter of its own class, under
        this name; for what it renames, PEFT knows itself what to do."""
        path = f"{entry.parent}.experts"
        is_renamed = entry.parent.endswith("block_sparse_moe") and path not in self.are_fused
        return entry.word in ROUTERS and entry.shape[0] == self.experts.get(path) and not is_renamed


def _kind(entry: Weight, around: _Around, said: Said) -> tuple[str, str]:
    """The kind of a parameter, and what else is to be told of it."""
    if not entry.module:
        return "other", ""  # PEFT reaches modules alone
    axes, beside = len(entry.shape), around.specs.get(f"{entry.module}.weight")
    if entry.leaf == "bias" and beside is not None:
        kind, why = _kind(Weight(f"{entry.module}.weight", _Bare(beside), _Bare(beside)), around, said)
        return ("bias" if kind in FACTORED else "other" if kind in _TABLES else kind), why
    if not entry.is_matrix:
        is_vectors = bool(entry.module) and around.widest[entry.module] < 2 and entry.module not in around.parents
        return ("norm" if is_vectors else "other"), ""
    if axes == 3 and matches(said.expert, entry.name):
        return "experts", ""
    if entry.leaf != "weight":
        if axes == 3 and "experts" in entry.module.split("."):
            return "experts", ""
        return "other", "experts" if axes == 3 and entry.shape[0] > 1 else ""
    if axes > 2:
        return ("experts", "") if axes == 3 and entry.word in _PARALLEL else ("convolution", "")
    return _kind_of_matrix(entry, around, said)


def _kind_of_matrix(entry: Weight, around: _Around, said: Said) -> tuple[str, str]:
    """The kind of a weight [a, b]."""
    if matches(said.linear, entry.module):
        return "linear", ""
    if matches(said.embedding, entry.module):
        return "embedding", ""
    if f"{entry.parent}.in_proj_weight" in around.specs:
        return "other", "attention"
    if entry.word == "out_proj" and _is_refused_mamba(entry.parent, around):
        return "other", "mamba"
    if around.routes(entry):
        return "router", ""
    if around.has_bias(entry):
        return "linear", ""
    return _kind_by_name(entry.word), ""


@cache
def _kind_by_name(word: str) -> str:
    """The kind of a module of this name with a weight of two axes and no bias."""
    if _EMBEDDING.fullmatch(word):
        return "position" if word in _POSITIONS else "embedding"
    is_plain = word in adapters.OUTPUTS or _PROJECTION.fullmatch(word)
    return "unknown" if _MAY_EMBED.fullmatch(word) and not is_plain else "linear"


def _is_refused_mamba(path: str, around: _Around) -> bool:
    """Whether a module may be the mixer of Mamba, Mamba 2, Falcon-Mamba, Falcon-H1 or Nemotron-H, of which PEFT refuses
    to factor the outputs; it does not for Jamba, whose A_log has two axes, and linear attention."""
    decay, word = around.specs.get(f"{path}.A_log"), path.rpartition(".")[2]
    return decay is not None and (word == "mixer" or (word == "mamba" and len(decay.shape) == 1))


@dataclass(frozen=True)
class _Bare:
    """Stands for a version of which only the header matters."""

    spec: Spec


def _ancestors(path: str) -> Iterable[str]:
    """All modules around one."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def matches(patterns: Sequence[re.Pattern[str]], path: str) -> bool:
    return any(pattern.fullmatch(path) for pattern in patterns)
