"""Benchmarks: what an event costs, step by step and as a whole, beside an honest control."""
