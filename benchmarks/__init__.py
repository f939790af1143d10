"""Measurements beside peers, interleaved, medians of several runs. Results go to docs/LOG.md, dated."""
