"""Work with vectors that are already there: exact search, near duplicates, stored answers, intents.

>>> from model_manager.semantic import semantic_search, near_duplicates, SemanticCache, IntentClassifier

Needs numpy only. A vector database does the same for collections that outgrow the memory of one process
(`model_manager.qdrant`).
"""

from .cache import CachedAnswer, SemanticCache
from .duplicates import near_duplicates
from .intents import Intent, IntentClassifier
from .search import Matches, pairwise_similarity, semantic_search

__all__ = [
    "CachedAnswer",
    "Intent",
    "IntentClassifier",
    "Matches",
    "SemanticCache",
    "near_duplicates",
    "pairwise_similarity",
    "semantic_search",
]
