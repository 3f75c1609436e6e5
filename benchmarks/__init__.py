"""What benchmark.py measures and draws."""
