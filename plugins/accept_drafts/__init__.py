"""AcceptDrafts: which drafts stand, and the lengths that follow."""
