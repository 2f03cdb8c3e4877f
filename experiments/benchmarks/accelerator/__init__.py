"""Workloads that fill one accelerator."""
