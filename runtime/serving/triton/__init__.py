"""The model of Triton's Python backend, which `examples/triton_model_repository` uses: tensors in, tensors out."""
