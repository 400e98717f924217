"""A walk for readers: a tree on the terminal, Mermaid, and a capture file with comments."""
