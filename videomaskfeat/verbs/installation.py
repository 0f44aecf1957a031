"""The verbs about this installation: configs, models, doctor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from videomaskfeat.config import shipped_configs
from videomaskfeat.config_keys import key
from videomaskfeat.errors import UserError
from videomaskfeat.io import make_parent, whole_file
from videomaskfeat.terminal import DONE, FAILED
from videomaskfeat.texts import printable
from videomaskfeat.verbs.verb import Verb


@dataclass
class ConfigsOptions:
    """options"""

    match: str = key("", "text in the names to list or copy, such as pretrain/ or ssv2")
    copy: str | None = key(None, "folder to copy them into; existing files are kept")


def configs(options: ConfigsOptions) -> int:
    """List the configs that come with the package, or copy them.

      videomaskfeat configs
      videomaskfeat configs --match pretrain/sample --copy my_configs
    `--config` accepts their names:
      videomaskfeat pretrain --config pretrain/sample --keys
    """
    shipped = {name: path for name, path in shipped_configs().items() if options.match in name}
    if not shipped:
        raise UserError(f"no config has {options.match!r} in its name; `videomaskfeat configs` lists them")
    for name, path in shipped.items():
        text = path.read_text(encoding="utf-8")
        if options.copy is None:
            print(printable(f"{name:<36} {text.partition(chr(10))[0].removeprefix('# ')}"))
            continue
        target = Path(options.copy, f"{name}.yaml")
        if target.exists():
            print(printable(f"{target} exists, kept"))
            continue
        make_parent(target)
        with whole_file(target) as file:
            file.write(text)
        print(printable(str(target)))
    return DONE


@dataclass
class ModelsOptions:
    """options"""

    pattern: str = key("*", "pattern of names, such as '*nano*'; without it, all models", positional=True)
    json: bool = key(False, "print JSON")


def models(options: ModelsOptions) -> int:
    """List the named models: parameters, multiply-adds of one clip, size of the clip, and purpose.

    videomaskfeat models
    videomaskfeat models '*nano*'
    videomaskfeat models 'vit_b*' --json
    """
    from videomaskfeat.models.sizes import facts_json, facts_text, list_facts

    facts = list_facts(options.pattern)
    print(facts_json(facts) if options.json else facts_text(facts))
    return DONE


@dataclass
class DoctorOptions:
    """options"""

    folder: str = key(".", "folder to report the free space of")
    json: bool = key(False, "print JSON")


def doctor(options: DoctorOptions) -> int:
    """Report what works on this machine, and what each feature lacks.

    videomaskfeat doctor
    videomaskfeat doctor --folder /data --json
    """
    from videomaskfeat.environment import diagnose

    diagnosis = diagnose(options.folder, measure=True)
    print(diagnosis.to_json() if options.json else diagnosis.text())
    return DONE if diagnosis.healthy else FAILED


VERBS = {
    "configs": Verb(configs),
    "models": Verb(models),
    "doctor": Verb(doctor),
}
