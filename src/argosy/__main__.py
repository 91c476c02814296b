"""`python -m argosy`: the command where no script of it is on PATH, as in an environment of its own."""

from argosy.cli.main import main

main(prog_name="argosy")
