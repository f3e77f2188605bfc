"""Ratios against a named baseline measured in the same run: `python -m benchmarks.<name>`.

Each prints a table and, as its last line, one JSON object. Baselines are written here as a careful user would write
them, with the same libraries and on the same cores.
"""
