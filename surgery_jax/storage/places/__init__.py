"""Places: where files lie. `base` says what a place offers, `local` is the file system, `found` finds them."""
