"""The dictionaries that the chatbot's health endpoints return. Everything in them is JSON-serializable."""

from __future__ import annotations

import os
import sys

from .. import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._core import Manager


def model_info(manager: Manager, memory_mb: float) -> dict[str, Any]:
    """What `ModelManager.get_model_info` returns."""
    stats = manager.stats()
    cache = stats["cache"]
    enabled, interval, idle = manager.auto_cleanup
    lookups = cache["hits"] + cache["misses"]
    loaded = {name: slot for name, slot in stats["slots"].items() if slot["state"] == "ready"}
    return {
        "english_sentence_model_loaded": "english_sentence" in loaded,
        "turkish_sentence_model_loaded": "turkish_sentence" in loaded,
        "text_generator_loaded": "text_generator" in loaded,
        "device": manager.device,
        "model_config": {f"{name}_model": slot["source"] or name for name, slot in loaded.items()},
        "memory_info": {
            "memory_mb": memory_mb,
            "memory_percent": 100 * _core.resident_bytes() / _physical_memory(),
        },
        "language_detection_enabled": manager.config.language_detection,
        "prefer_turkish_models": manager.config.prefer_turkish,
        "cache_info": {
            "embedding_cache_size": cache["entries"],
            "embedding_cache_hits": cache["hits"],
            "embedding_cache_misses": cache["misses"],
            "embedding_cache_maxsize": cache["max_entries"],
            "cache_hit_ratio": cache["hits"] / lookups if lookups else 0.0,
        },
        "lazy_loading_stats": stats["tracker"],
        "auto_cleanup_enabled": enabled,
        "cleanup_interval_seconds": _whole(interval),
        "max_idle_time_seconds": _whole(idle),
        "last_cleanup": stats["last_cleanup_seconds"],
    }


def lazy_loading_statistics(manager: Manager, memory_mb: float) -> dict[str, Any]:
    """What `ModelManager.get_lazy_loading_statistics` returns."""
    stats = manager.stats()
    cache = stats["cache"]
    enabled, interval, idle = manager.auto_cleanup
    return {
        "tracker": stats["tracker"],
        "config": {
            "auto_cleanup": enabled,
            "cleanup_interval": _whole(interval),
            "max_idle_time": _whole(idle),
            "max_cache_size": cache["max_entries"],
        },
        "current_state": {
            "models_loaded": {name: slot["state"] == "ready" for name, slot in stats["slots"].items()},
            "memory_usage_mb": memory_mb,
            "cache_usage": {
                "hits": cache["hits"],
                "misses": cache["misses"],
                "maxsize": cache["max_entries"],
                "currsize": cache["entries"],
            },
        },
    }


def _physical_memory() -> int:
    if sys.platform == "win32":
        import ctypes

        # MEMORYSTATUSEX: its size, the load in percent, and seven figures of 8 bytes, of which this is the first.
        status = (ctypes.c_uint64 * 8)(64)
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return status[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _whole(seconds: float) -> float:
    """300.0 as 300: settings that were integers in the original stay integers."""
    return int(seconds) if seconds == int(seconds) else seconds
