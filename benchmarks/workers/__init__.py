"""Engines as processes that stay open: each module here is one library, run with the interpreter of its environment.

Only the standard library is imported on load: these files run in environments that have nothing else in common.
"""
