"""Machines that exist already, reached by OpenSSH's own client."""
