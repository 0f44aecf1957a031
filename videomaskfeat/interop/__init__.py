"""Other projects' configs and checkpoints, brought along."""

from videomaskfeat.interop.slowfast import Imported, load_slowfast

__all__ = ["Imported", "load_slowfast"]
