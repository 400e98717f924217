"""Claims: the catalogue, the notes of a check, the verdict."""
