"""TensorRT: the network lowered to engines. Nothing here imports it before an engine is asked for."""
