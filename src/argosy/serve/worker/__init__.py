"""Host one replica of a version: load, verify, measure, and run the batches that fronts hand over."""
