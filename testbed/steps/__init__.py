"""Steps of a plan, and the context that they run in."""
