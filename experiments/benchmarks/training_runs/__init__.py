"""The parts of `scripts/bench training`."""
