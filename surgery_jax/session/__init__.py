"""A run from check to commit, for one plan or many, into files or memory; observers are told what happens.

Hands on reports. Imports everything below but `reports`.
"""
