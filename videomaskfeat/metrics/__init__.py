"""What a score is: arrays of numbers in, numbers out; no video and no model. AVA's score also knows its files."""
