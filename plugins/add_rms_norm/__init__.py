"""AddRmsNorm: a residual addition and the norm that follows it."""
