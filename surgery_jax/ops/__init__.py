"""Transforms: one file each. `base` says how they are declared, `forms` how their spellings act."""
