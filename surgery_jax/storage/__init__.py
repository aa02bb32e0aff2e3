"""Formats: one file each. `base` says what they offer, `formats` finds them, `publish` makes outputs appear at once."""
