"""Claims: the catalogue, what a check writes down, the verdict."""
