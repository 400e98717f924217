"""Catalogues of claims that come with testbed."""
