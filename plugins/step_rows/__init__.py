"""StepRows: which token each row of a step is, and what drafts look up."""
