"""What made the references: recorded in every file, since another version may differ in the last bit."""

from importlib.metadata import version

PACKAGES = ("torch", "transformers", "sentence-transformers", "tokenizers", "safetensors", "numpy")
VERSIONS = {package: version(package) for package in PACKAGES}
