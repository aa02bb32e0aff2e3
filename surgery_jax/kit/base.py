"""All that the file of a verb needs to declare it: fields, tensor operations, directives, and the words they go by.

A transform is one file with one class. A `TensorOp` is a pure function from arrays to arrays plus a shape-and-dtype
rule; its `spellings` say which plan words build it and how (new tensor, in place, three operands). A `Directive` acts
on the namespace while the graph is built. Parsing, unknown-key errors, help text, completion and the contract tests all
read the declarations made here.
"""

from .fields import (
    REQUIRED,
    Field,
    Values,
    boolean,
    choice,
    declare,
    dtype_name,
    epsilon,
    expressions,
    fields_of,
    fraction,
    integer,
    integers,
    node,
    number,
    parse_bool,
    parse_epsilon,
    parse_fields,
    parse_int,
    parse_number,
    pattern,
    rank,
    reference,
    text,
    texts,
    values,
    word,
    wrong,
)
from .operations import NO_ARITHMETIC, Directive, TensorOp
from .words import BoundStep, Word, find_word, operation, words

__all__ = [
    "NO_ARITHMETIC",
    "REQUIRED",
    "BoundStep",
    "Directive",
    "Field",
    "TensorOp",
    "Values",
    "Word",
    "boolean",
    "choice",
    "declare",
    "dtype_name",
    "epsilon",
    "expressions",
    "fields_of",
    "find_word",
    "fraction",
    "integer",
    "integers",
    "node",
    "number",
    "operation",
    "parse_bool",
    "parse_epsilon",
    "parse_fields",
    "parse_int",
    "parse_number",
    "pattern",
    "rank",
    "reference",
    "text",
    "texts",
    "values",
    "word",
    "words",
    "wrong",
]
