"""Accounts: explain, simulate, survey, compare, spectrum."""
