"""`add`, `subtract`, `multiply`, `scale`, `clamp`, `cast`, `matmul` against the oracle, which rounds once."""

from __future__ import annotations

import oracle
from cases import References, ordinary, pair
from strategies import FLOATS, NUMBERS, SMALL_FLOATS

from surgery_jax.core.dtypes import BY_NAME
from surgery_jax.ops.add import Add
from surgery_jax.ops.cast import Cast
from surgery_jax.ops.clamp import Clamp
from surgery_jax.ops.matmul import Matmul
from surgery_jax.ops.multiply import Multiply
from surgery_jax.ops.scale import Scale
from surgery_jax.ops.subtract import Subtract

REFERENCES: References = {
    "Add": ([(Add(), pair(n)) for n in (*NUMBERS, "bool")], lambda op, a, b: oracle.combine("add", a, b), "values"),
    "Subtract": ([(Subtract(), pair(n)) for n in NUMBERS], lambda op, a, b: oracle.combine("subtract", a, b), "values"),
    "Multiply": (
        [(Multiply(), pair(n)) for n in (*NUMBERS, "bool")],
        lambda op, a, b: oracle.combine("multiply", a, b),
        "values",
    ),
    "Scale": (
        [(Scale(by), pair(n)[:1]) for n in (*FLOATS, *SMALL_FLOATS) for by in (0.1, -3.0)],
        lambda op, x: oracle.scale(x, op.by),
        "values",
    ),
    "Cast": (
        [
            (Cast(BY_NAME[to]), pair(n)[:1])
            for n in (*NUMBERS, "bool")
            for to in ("float16", "bfloat16", "int8", "uint64", "bool")
        ],
        lambda op, x: oracle.cast(x, oracle.dtype_of(op.dtype.name)),
        "values",
    ),
    "Clamp": (
        [(Clamp(-0.3, 1.0), pair(n)[:1]) for n in (*NUMBERS, "bool")] + [(Clamp(None, 0.1), pair("bfloat16")[:1])],
        lambda op, x: oracle.clamp(x, op.min, op.max),
        "values",
    ),
    "Matmul": (
        [
            (Matmul(), [ordinary(n, 2, 3, 4), ordinary(n, 4, 5)])
            for n in ("float32", "bfloat16", "float64", "int8", "int64")
        ]
        + [
            (Matmul(), [ordinary("float32", 4), ordinary("float32", 4)]),
            (Matmul(), [ordinary("int32", 4), ordinary("int32", 4, 2)]),
        ],
        lambda op, a, b: oracle.matmul(a, b),
        "close",
    ),
}
