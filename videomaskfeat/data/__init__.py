"""From a video file to a batch: lists, readers, sampling, transforms, loading."""
