"""From a model checkpoint to an engine directory."""
