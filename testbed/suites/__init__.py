"""The checks of the claims, and their runner on a lab."""
