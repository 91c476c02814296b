"""Run an artifact alone, as a worker would, in a process of its own: answers, seconds, memory.

artifact.py    files that a runtime serves
probe.py       the process, from outside: load, answer, time
child.py       the process itself
dialogue.py    what is asked of a process and what it answers, in lines
rows.py        requests in files, for the way to the child
"""
