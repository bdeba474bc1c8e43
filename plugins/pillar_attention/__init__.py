"""PillarAttention: RoPE, KV append and ragged paged attention with a phase per slot."""
