"""What a score is: arrays of numbers in, numbers out; no video, no model and no file."""
