"""The benchmarks: `python -m bench` runs them all, `python -m bench COMMAND` one. See README.md."""
