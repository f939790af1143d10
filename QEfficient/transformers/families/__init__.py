"""One file for each family of models that leaves the seams: only what differs."""
