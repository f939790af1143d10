"""Requests become tokens, and tokens text. numpy and a tokenizer; no torch."""
