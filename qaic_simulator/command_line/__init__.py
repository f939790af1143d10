"""The command line of the compiler: its grammar, its options, and what can be said before the graph is read."""
