"""The parts of `scripts/bench spectra`."""
