"""Benchmarks: `make bench` prints one JSON line per figure. Ratios within one run, alternating, medians of seven rounds."""
