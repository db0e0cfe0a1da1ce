"""What is measured of the GPU path, and what of it is checked without a GPU."""
