"""What happens when: the schedule of a program as a value, workers that read, compute and write, verdicts.

Hands on findings. Imports `compile`, `io` and below.
"""
