"""What `sparsespec doctor` is made of."""
