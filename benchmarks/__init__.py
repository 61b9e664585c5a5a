"""Measurements that a person runs; every figure lands in benchmarks/results as a row with its conditions."""
