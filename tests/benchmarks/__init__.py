"""Benchmarks: run each with ``python -m tests.benchmarks.NAME``; none of them is a test."""
