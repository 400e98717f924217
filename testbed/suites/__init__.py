"""The checks of the claims, and what runs them on a lab."""
