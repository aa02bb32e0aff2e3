"""Accounts for people: explain, simulate, survey, compare, spectrum and its page. Imports `execute` and below."""
