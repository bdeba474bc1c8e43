"""The project's own ops: a torch reference for each, CUDA kernels, and their TensorRT plugins."""
