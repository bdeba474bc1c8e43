"""The model of Triton's Python backend: tensors in, tensors out, the service behind. `examples/triton_model_repository` uses it."""
