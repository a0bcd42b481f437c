"""One command a claim: python -m benchmarks.NAME. Each prints its ratio last; --json prints one object instead."""
