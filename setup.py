"""Metadata and extras. The distribution is called learn-to-guide, the import name is guidance."""

from setuptools import find_packages, setup

BASE = [
    "chex>=0.1.90",
    "flax>=0.12",
    "jax>=0.10",
    "matplotlib>=3.9",
    "ml_collections>=1.0",
    "ml_dtypes>=0.5",
    "numpy>=2.0",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.30",
    "pillow>=11.0",
    "safetensors>=0.8",
    "scikit-learn>=1.5",
    "scipy>=1.14",
    "tqdm>=4.66",
]

# data sets already prepared as array_record: read without TensorFlow. tensorflow-datasets imports importlib_resources
# without declaring it.
DATA = ["array_record>=0.5", "importlib_resources>=6.0", "tensorflow-datasets>=4.9.7"]

EXTRAS = {
    # what `make test` and `make lint` need
    "test": ["hypothesis>=6.120", "mypy>=1.18", "pytest>=8.3", "pytest-xdist>=3.6", "ruff>=0.12", *DATA],
    "data": DATA,
    # preparing published data sets: their builders need TensorFlow
    "prepare": [*DATA, "tensorflow>=2.18"],
    # converting published .pt weights; holding our networks against PyTorch's implementations of the same ones.
    # Install torch first where no GPU is wanted: the default wheels bring CUDA.
    "parity": ["diffusers>=0.35", "pytorch-fid>=0.3", "torch>=2.6"],
}

setup(
    name="learn-to-guide",
    version="0.1.0",
    description="Composable guidance for diffusion models in JAX, and guidance weights that are learned",
    license="Apache-2.0",
    python_requires=">=3.11",
    package_data={"guidance": ["py.typed"], "experiments.config": ["references.bib"]},
    packages=[*find_packages(include=["guidance", "guidance.*", "experiments", "experiments.*"]), "configs"],
    install_requires=BASE,
    extras_require=EXTRAS,
    classifiers=[
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
