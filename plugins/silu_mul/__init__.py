"""SiluMul: the activation of a gated MLP."""
