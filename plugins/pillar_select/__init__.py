"""PillarSelect: scores to the sorted logical positions that the next drafts read."""
