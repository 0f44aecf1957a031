"""Packaging of videomaskfeat."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent


class BuildWithConfigs(build_py):
    """Copies configs/ into the package of a wheel; an editable install reads the folder itself."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "videomaskfeat/configs"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(here / "configs", target)


package = (here / "videomaskfeat/__init__.py").read_text(encoding="utf-8")
version = re.search(r'__version__ = "(.+?)"', package)
assert version is not None

setup(
    name="videomaskfeat",
    version=version.group(1),
    description="Masked video pre-training: MaskFeat and its family on MViTv2",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=find_packages(include=["videomaskfeat", "videomaskfeat.*"]),
    package_data={
        "videomaskfeat": ["py.typed"],
        "videomaskfeat.data": ["digits.npz"],
        "videomaskfeat.models": ["sizes.json"],
        "videomaskfeat.viz": ["templates/*"],
    },
    cmdclass={"build_py": BuildWithConfigs},
    install_requires=[
        "torch>=2.11",
        # decord has no wheels for Arm (Linux, macOS on Apple silicon); there PyAV reads all videos.
        'decord>=0.6; platform_machine == "x86_64" or platform_machine == "AMD64"',
        "av>=17.1,<19",  # 17.1 adds Graph.threads, 19 removes metadata_errors
        "opencv-python-headless>=4.8.1",
        "pytorchvideo>=0.1.5",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.10",
        "simplejson>=3.19",
        "numpy>=1.26",
        "omegaconf>=2.3",
        "safetensors>=0.4",
        "rich>=13",
        "tensorboard>=2.17",  # the first without tensorflow, and with a current protobuf
        "matplotlib>=3.8",
        "Jinja2>=3.1",
        "vl-convert-python>=1.9",  # Vega-Lite's JavaScript for pages
    ],
    extras_require={
        "dev": [
            *("codespell", "ruff", "mypy", "pytest", "pytest-timeout", "pytest-xdist"),
            *("nbclient", "ipykernel"),  # examples/quickstart.ipynb
            "setuptools>=70.1",  # the first that builds a wheel without the package wheel
        ],
        "lars": ["pytorch_optimizer>=3.7"],  # BYOL's optimizer
        "teachers": ["transformers>=4.40"],  # vision models as teachers
        "detector": ["transformers>=4.40"],  # models that detect persons
        "export": ["onnx>=1.18", "onnxscript>=0.6", "onnxruntime>=1.22"],  # all three know opset 23
        "hub": ["huggingface_hub>=0.26"],  # from_pretrained and push_to_hub
        "wandb": ["wandb>=0.18"],
        "mlflow": ["mlflow-skinny>=2.16"],
        "lora": ["peft>=0.13"],
        "shards": [
            "urllib3>=2",
            "fsspec>=2024.2",
            "s3fs>=2024.2",
            "gcsfs>=2024.2",
        ],  # http(s)://, s3://, gs://
        "torchcodec": ["torchcodec>=0.10"],  # data.reader=torchcodec; it must fit torch
        "launch": ["submitit>=1.5"],  # jobs of SLURM
        "ray": ["ray>=2.9"],  # offline jobs on clusters
        "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"],
    },
    license="Apache-2.0",
    license_files=["LICENSE"],
    entry_points={"console_scripts": ["videomaskfeat = videomaskfeat.__main__:run"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
