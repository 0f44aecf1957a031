"""The verbs for weights and models of other programs: import-slowfast, import-weights, export."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from videomaskfeat.config_keys import key
from videomaskfeat.interop.slowfast_keys import SUPPORTED
from videomaskfeat.terminal import DONE
from videomaskfeat.texts import printable
from videomaskfeat.verbs.verb import Verb


@dataclass
class ImportOptions:
    """files"""

    config: str = key("", "config (YAML) of PySlowFast", required="MVITv2_S_16x4.yaml")
    checkpoint: str | None = key(None, "its checkpoint", null="the config alone is imported")
    out: str = key("", "folder for weights.safetensors, config.yaml, import.json", positional=True)
    class_names: str | None = key(None, "file of class names: one per line, or SSv2's labels JSON")
    weights_key: str = key(
        "", "key of the weights in the checkpoint; empty: the first of model_state, state_dict, model, module"
    )


def import_slowfast(options: ImportOptions) -> int:
    """Convert a PySlowFast YAML, and its checkpoint if given, into a config and a weights file.

      videomaskfeat import-slowfast --config MVITv2_S_16x4.yaml zoo/training      the training alone
      videomaskfeat import-slowfast --config MVITv2_S_16x4.yaml --checkpoint MViTv2_S_16x4_k400.pyth zoo/s
      videomaskfeat import-slowfast --config k400_MVITv2_S_16x4_FT.yaml --checkpoint s.pyth zoo/s_ft \\
          --class-names kinetics400_names.txt
      videomaskfeat predict zoo/s_ft/weights.safetensors my_video.mp4
    """
    from videomaskfeat.jobs.import_weights import import_slowfast

    arguments = vars(options).copy()
    files = arguments.pop("config"), arguments.pop("checkpoint")
    print(printable(import_slowfast(*files, **arguments).text()))
    return DONE


import_slowfast.__doc__ = f"{inspect.cleandoc(import_slowfast.__doc__ or '')}\n\n" + "\n".join(
    ["models, and whether they are imported and exported:"]
    + [
        f"  {name:48} {'yes' if read else 'no':3}  {'yes' if write else 'no'}"
        for name, read, write in SUPPORTED
    ]
)


@dataclass
class ImportWeightsOptions:
    """files"""

    weights: str = key("", "weights file, or a folder of transformers or timm", positional=True)
    out: str = key("", "folder for weights.safetensors, config.yaml, import.json", positional=True)
    format: str = key(
        "auto",
        "format of the weights: auto, or a name of docs/how_to/other_weights.md, such as vjepa2",
        flag="from",
    )
    probe: str | None = key(None, "attentive probe of a V-JEPA encoder", null="no head")
    class_names: str | None = key(None, "file of class names: one per line, or SSv2's labels JSON")
    weights_key: str = key("", "key of the weights in the checkpoint; empty: the usual one")
    heads: int | None = key(None, "number of attention heads", least=1, null="as in published models")
    decoder_heads: int | None = key(
        None, "number of attention heads of a decoder", least=1, null="as in published models"
    )
    frames: int | None = key(None, "frames per clip", least=1, null="from the weights")
    stride: int | None = key(None, "frame stride", least=1, null="as in published models")
    crop: int | None = key(
        None, "height and width of a clip", unit="pixels", least=1, null="from the weights"
    )


def import_weights(options: ImportWeightsOptions) -> int:
    """Convert weights of another project (VideoMAE, V-JEPA, timm, ...) into a weights file and a config.

    videomaskfeat import-weights videomae_b_k400.pth zoo/videomae_b
    videomaskfeat import-weights vjepa2-vitl-fpc64-256/ zoo/vjepa2_l
    videomaskfeat import-weights checkpoint.pth zoo/b --from videomae --class-names kinetics400_names.txt
    """
    from videomaskfeat.jobs.import_weights import import_weights

    arguments = vars(options).copy()
    files = arguments.pop("weights"), arguments.pop("out")
    print(printable(import_weights(*files, **arguments).text()))
    return DONE


@dataclass
class ExportOptions:
    """files"""

    weights: str = key("", "weights of any run, or of an import", positional=True)
    out: str = key("", "file to write", positional=True)
    format: str = key(
        "auto",
        "format",
        choices={
            "auto": "by the file extension",
            "safetensors": "",
            "slowfast": ".pyth and .yaml",
            "torch": ".pt2",
            "onnx": "",
        },
    )
    part: str = key("model", "part", choices={"model": "", "encoder": "without its head"})
    input: str | None = key(
        None,
        "input of the graph",
        choices={
            "uint8": "decoded frames, [B,T,H,W,C]; the graph normalizes them",
            "float": "normalized clips, [B,C,T,H,W]",
        },
        null="uint8",
    )
    batch: int | None = key(None, "batch size of the graph; dynamic: any", least=1, null="dynamic")
    opset: int | None = key(None, "ONNX opset, 18 to 23", null="20")
    tolerance: float = key(1e-4, "maximum difference, relative to the largest output", above=0, below=1)
    overwrite: bool = key(False, "replace OUT if it exists")


def export(options: ExportOptions) -> int:
    """Write a model as ONNX, torch.export program, PySlowFast checkpoint or safetensors, and check the file.

    videomaskfeat export runs/s_k400/best.safetensors s_k400.onnx
    videomaskfeat export runs/s_k400/best.safetensors s_k400.pt2 --batch 8 --input float
    videomaskfeat export runs/s_k400/best.safetensors s_k400.pyth        PySlowFast's names, and a YAML
    videomaskfeat export runs/s/weights.safetensors encoder.onnx --part encoder --opset 18
    videomaskfeat export runs/s_k400/best.safetensors encoder.safetensors --part encoder
    """
    from videomaskfeat.jobs.export import export

    print(printable(export(**vars(options)).text()))
    return DONE


VERBS = {
    "import-slowfast": Verb(import_slowfast),
    "import-weights": Verb(import_weights),
    "export": Verb(export),
}
