"""Results in a real Redis Cluster of three nodes: keys are found wherever they are, and while they move."""

from __future__ import annotations

import time

import numpy as np
import pytest
from test_cache_redis import SLOT, TEXTS, expected, figures, fill, patient, ready  # noqa: F401  a fixture


def test_keys_are_spread_over_the_nodes_and_found_again(redis_cluster, expected):  # noqa: F811
    assert fill(redis_cluster.url)["writes"] == len(TEXTS)
    held = [redis_cluster.keys(node) for node in redis_cluster.nodes]
    assert sum(held) == len(TEXTS)
    assert min(held) > 5
    with patient(cache_url=redis_cluster.url, cache_size=0) as manager:
        ready(manager)
        texts = manager.stats()["queue"]["texts"]
        np.testing.assert_array_equal(manager.embed(TEXTS, SLOT), expected)
        assert figures(manager)["hits"] == len(TEXTS)
        assert manager.stats()["queue"]["texts"] == texts
        # Keys of others stay.
        redis_cluster.nodes[0].call("CONFIG", "SET", "cluster-require-full-coverage", "no")
        manager.cache_clear(tiers=True)
        assert sum(redis_cluster.keys(node) for node in redis_cluster.nodes) == 0
        assert figures(manager)["errors"] == 0


def test_keys_that_move_are_followed(redis_cluster, expected):  # noqa: F811
    fill(redis_cluster.url)
    source, target, _ = redis_cluster.nodes
    source_id, target_id = (node.call("CLUSTER", "MYID").split(b"\r\n")[1].decode() for node in (source, target))
    with patient(cache_url=redis_cluster.url, cache_size=0) as manager:
        ready(manager)
        hits = 0

        def all_hit():
            nonlocal hits
            np.testing.assert_array_equal(manager.embed(TEXTS, SLOT), expected)
            hits += len(TEXTS)
            assert figures(manager)["hits"] == hits, figures(manager)

        all_hit()
        key = source.call("RANDOMKEY").split(b"\r\n")[1].decode()
        slot = source.call("CLUSTER", "KEYSLOT", key)[1:].strip().decode()
        assert target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id) == b"+OK\r\n"
        assert source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id) == b"+OK\r\n"
        moved = source.call("MIGRATE", "127.0.0.1", str(target.port), key, "0", "5000")
        assert moved == b"+OK\r\n"
        assert source.call("GET", key).startswith(b"-ASK")
        all_hit()
        for node in (target, source):
            assert node.call("CLUSTER", "SETSLOT", slot, "NODE", target_id) == b"+OK\r\n"
        assert source.call("GET", key).startswith(b"-MOVED")
        all_hit()
        all_hit()
        assert figures(manager)["errors"] == 0


def test_a_node_that_is_lost_costs_no_result(redis_cluster, expected):  # noqa: F811
    fill(redis_cluster.url)
    with patient(cache_url=redis_cluster.url, cache_size=0) as manager:
        ready(manager)
        np.testing.assert_array_equal(manager.embed(TEXTS, SLOT), expected)
        redis_cluster.nodes[2].stop()
        for _ in range(5):
            np.testing.assert_allclose(manager.embed(TEXTS, SLOT), expected, atol=1e-6)
        redis_cluster.nodes[2].start()
        deadline = time.monotonic() + 30
        hits = figures(manager)["hits"]
        while figures(manager)["hits"] < hits + 20 and time.monotonic() < deadline:
            manager.embed(TEXTS, SLOT)
            manager.cache_flush()
            time.sleep(0.2)
        assert figures(manager)["hits"] >= hits + 20


def test_a_node_that_is_named_as_a_server_is_reported_with_the_remedy(redis_cluster, expected, caplog):  # noqa: F811
    url = redis_cluster.url.replace("+cluster", "")
    with caplog.at_level("WARNING"), patient(cache_url=url, cache_size=0) as manager:
        ready(manager)
        np.testing.assert_allclose(manager.embed(TEXTS, SLOT), expected, atol=1e-6)
        manager.cache_flush()
    assert any("redis+cluster://" in record.message for record in caplog.records)


def test_servers_and_nodes_are_not_mixed(redis_server):
    with pytest.raises(ValueError, match="one cluster"):
        patient(cache_url="redis://127.0.0.1:1,redis+cluster://127.0.0.1:2").embed("text", SLOT)
