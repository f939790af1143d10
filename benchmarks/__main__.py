"""`python -m benchmarks`: ours beside its peers. See `benchmarks.comparison`."""

from benchmarks.comparison import main

if __name__ == "__main__":
    main()
