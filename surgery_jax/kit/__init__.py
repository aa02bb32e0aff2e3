"""How operations and assertions are declared: fields, spellings, rules, the registry of words, what steps may do.

Hands on base classes and the parts of a plan's state that authors of verbs see. Imports `core`, `language`, `numerics`.
"""
