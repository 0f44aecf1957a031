"""What a score is: arrays of numbers in, numbers out; no video, no model. AVA's score also knows its files."""
