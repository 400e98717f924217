"""Faults: break parts of a lab on purpose, detect them, and heal them.

``model`` defines faults and parses them, ``means`` has the commands that cause and detect them,
``force`` runs these commands on a running lab. No file records the active faults: they are read
from the machine.
"""
