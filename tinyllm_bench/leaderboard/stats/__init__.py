"""Intervals, tests, averages and power."""
