"""Labs: plan, create, inspect and remove them."""
