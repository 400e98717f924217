"""The path of a packet through a lab: sent, observed at every place, explained."""
