"""Commands that look at a dataset: info, verify, repair, coverage, replay."""
