"""Plan text to values with positions: YAML, references, slices, expressions and loops, jobs.

Hands on a `Plan`: inputs, steps and output as words with line and column. Knows no transform and no file format.
Imports `core`.
"""
