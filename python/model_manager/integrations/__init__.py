"""Adapters to other packages: LangChain, LlamaIndex, Qdrant, Jupyter. Each is imported only on request."""
