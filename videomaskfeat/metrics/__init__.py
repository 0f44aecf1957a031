"""What a score is: arrays of numbers in, numbers out; no video, no model. AVA's score knows its files too."""
