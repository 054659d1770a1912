"""The benchmark: every engine in a process of its own, interleaved rounds, medians and ratios from one run."""
