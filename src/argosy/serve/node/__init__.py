"""The root of a server's processes: the supervisor. Standard library only."""
