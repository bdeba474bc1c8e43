"""SampleRows: rows of logits summarised, and drafts drawn."""
