"""What can be seen on a live lab: packets."""
