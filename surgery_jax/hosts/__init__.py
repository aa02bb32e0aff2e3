"""The processes of one run: how they meet, what they must agree on, how they share tasks and end together.

Imports `execute` and below.
"""
