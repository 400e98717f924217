"""Faults: what can be broken in a lab on purpose, seen, and put right again.

``model`` says what a fault is and reads it from words, ``means`` which commands make
it and how it shows, ``force`` carries them out on a lab that is up.  Nothing is kept
in a file: what is in force is asked of the machine.
"""
