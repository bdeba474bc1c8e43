"""The device side: what a step does with tensors."""
