"""The benchmark: each engine in its own process, interleaved rounds, medians and ratios from one run."""
