"""Stand-ins for the tools of the Cloud AI SDK, for machines without it: strict, and never mistaken for the real ones.

A stand-in may refuse what the real tool accepts; it never accepts what the real tool is known or likely to refuse.
Nothing here imports QEfficient: what passes was written for the SDK, not for its stand-in.
"""
