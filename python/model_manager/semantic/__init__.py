"""Work with vectors that are already there: exact search, near duplicates, stored answers, intents; and BM25, which
needs none.

>>> from model_manager.semantic import semantic_search, near_duplicates, SemanticCache, IntentClassifier

Needs numpy only, and BM25 the extra ``bm25``. A vector database does the same for collections that outgrow the memory
of one process (`model_manager.integrations.qdrant`).
"""

from .bm25 import BM25, BM25Index, TextMatch
from .cache import CachedAnswer, SemanticCache
from .duplicates import near_duplicates
from .intents import Intent, IntentClassifier
from .search import Matches, pairwise_similarity, semantic_search

__all__ = [
    "BM25",
    "BM25Index",
    "CachedAnswer",
    "Intent",
    "IntentClassifier",
    "Matches",
    "SemanticCache",
    "TextMatch",
    "near_duplicates",
    "pairwise_similarity",
    "semantic_search",
]
