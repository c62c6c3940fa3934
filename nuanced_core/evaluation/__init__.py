"""Evaluation of an exported encoder, compared with baselines: on the test split and on recordings of people."""
