"""Other projects' configs and checkpoints, brought along."""
