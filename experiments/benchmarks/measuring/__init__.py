"""What all benchmarks share: the machine, the sides timed in one run, the table."""
