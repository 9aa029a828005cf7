"""Side-by-side measurements; they write results/. `python -m benchmarks` runs the studies."""
