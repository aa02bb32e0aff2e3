"""What every room speaks of: errors in four parts, dtypes, shapes, ranges, interrupts, what extends the program.

Hands on values without behaviour. Imports the standard library only; NumPy where a dtype is asked for its own.
"""
