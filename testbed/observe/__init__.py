"""Observation of a running lab: its network graph, packets, traces."""
