"""TensorRT engines at run time."""
