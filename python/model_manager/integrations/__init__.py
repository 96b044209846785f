"""Adapters to other packages: LangChain, LlamaIndex, Qdrant, Jupyter. The package imports each only on request."""
