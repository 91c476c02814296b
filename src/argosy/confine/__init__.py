"""Take every right from a process but those that its work needs: Landlock, seccomp, limits."""
