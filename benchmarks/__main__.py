"""`python -m benchmarks`: every benchmark, one after the other."""

from benchmarks import export, linear

if __name__ == "__main__":
    export.main([])
    linear.main([])
