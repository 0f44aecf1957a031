"""Configs: one dataclass a task, strict YAML on top, and ``section.key=value`` on top of that.

Every key has a default and one line of meaning with its unit; a file holds only what differs. Configs are
read once, written whole into the run folder, and never changed; no module below ``tasks/`` sees one.
"""

from functools import partial

from videomaskfeat import import_submodule
from videomaskfeat.config.detect_video import DetectVideoConfig
from videomaskfeat.config.finetune import FinetuneConfig
from videomaskfeat.config.load import config_text, flat, key_table, load_config
from videomaskfeat.config.pretrain import PretrainConfig
from videomaskfeat.config.tokenizer import TokenizerConfig

__getattr__ = partial(import_submodule, __name__)

__all__ = [
    "DetectVideoConfig",
    "FinetuneConfig",
    "PretrainConfig",
    "TokenizerConfig",
    "config_text",
    "flat",
    "key_table",
    "load_config",
]
