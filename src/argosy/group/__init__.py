"""Processes that work on one thing in step: what they tell each other, and the memory that they share on one host."""
