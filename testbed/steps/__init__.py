"""Steps of a plan, and what a step is given."""
