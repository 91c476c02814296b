"""Run an artifact alone, as a worker would, in a process of its own: what it answers, seconds, memory.

artifact.py    files that a runtime serves
probe.py       the process, from outside: load, answer, time
child.py       the process itself
rows.py        requests in files, for the way to the child
"""
