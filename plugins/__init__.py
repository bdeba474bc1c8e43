"""The project's own ops: a torch reference for each, later the CUDA kernels and their TensorRT plugins."""
