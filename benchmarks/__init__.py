"""Measurements beside peers, interleaved, medians of several runs."""
