"""Hugging Face model → retained module: state in, state out, positions explicit, through transformers' own seams."""
