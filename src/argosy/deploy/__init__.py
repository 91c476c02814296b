"""Say what should run where, and change it safely."""
