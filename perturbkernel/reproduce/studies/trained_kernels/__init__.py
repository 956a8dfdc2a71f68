"""Kernels of trained networks."""
