"""Training machinery that knows nothing of video."""
