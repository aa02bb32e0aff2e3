"""Plan text to values with positions: YAML, references, slices. Knows no transform and no file format."""
