"""Processes that take steps together: what they tell each other, and the memory that they share on one host."""
