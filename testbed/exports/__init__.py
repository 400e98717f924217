"""Exports: a lab as the files of another tool."""
