"""Kernels of our own for the CPU, in C, compiled at a worker's first start."""
