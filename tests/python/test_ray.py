"""Ray on a local cluster of two nodes of one CPU: the vectors of one process, a lost node, Ray Serve."""

from __future__ import annotations

import os
import shutil
import time

import httpx
import numpy as np
import pytest
from conftest import FIXTURES, TURKISH_MODEL, tiny
from model_manager import errors
from model_manager._embedder import Embedder
from model_manager.batch import BatchEmbedder
from servers import until

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
pytest.importorskip("ray", reason="needs ray[data,serve]")

import ray
import ray.data
from model_manager.ray import _pool, deployment, embed
from ray.cluster_utils import Cluster

pytestmark = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Ray's own modules
]
TEXTS = [f"metin {number}: hava {'çok ' * (number % 5)}güzel" for number in range(600)]
CONFIG = {"dtype": "float32"}
# Ray Serve kills a proxy that takes five seconds to start, which a busy machine needs. Its controller has the
# environment of the cluster.
PATIENT = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "300", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "300"}


@pytest.fixture(scope="module")
def cluster():
    os.environ.update(PATIENT)
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 << 20},
    )
    made.add_node(num_cpus=1, object_store_memory=100 << 20)
    paths = os.pathsep.join(p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p)
    ray.init(address=made.address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": paths, **PATIENT}})
    ray.data.DataContext.get_current().enable_progress_bars = False
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()
    for name in PATIENT:
        del os.environ[name]


@pytest.fixture(scope="module")
def expected():
    with tiny() as manager:
        return Embedder(manager, TURKISH_MODEL).documents(TEXTS)


def vectors_of(dataset):
    rows = sorted(dataset.take_all(), key=lambda row: row["id"])
    return np.stack([np.asarray(row["embedding"], np.float32) for row in rows])


def dataset(blocks):
    rows = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]
    return ray.data.from_items(rows, override_num_blocks=blocks)


def test_a_dataset_has_the_vectors_of_one_process(cluster, expected):
    made = embed(dataset(6), TURKISH_MODEL, workers=2, cpus=1, batch_size=50, config=CONFIG)
    assert np.array_equal(vectors_of(made), expected)


def test_a_lost_node_is_made_good(cluster, expected):
    nodes = cluster
    second = nodes.add_node(num_cpus=1, object_store_memory=100 << 20)
    made = embed(dataset(30), TURKISH_MODEL, workers=(1, 3), cpus=1, batch_size=20, config=CONFIG)
    rows, removed = [], False
    for batch in made.iter_batches(batch_size=20, batch_format="pyarrow"):
        rows += batch.to_pylist()
        if not removed:
            nodes.remove_node(second)
            removed = True
    rows.sort(key=lambda row: row["id"])
    assert [row["id"] for row in rows] == list(range(len(TEXTS)))
    assert np.array_equal(np.array([row["embedding"] for row in rows], np.float32), expected)


def test_wrong_pools_are_refused(cluster):
    with pytest.raises(errors.ArgumentError, match="workers=0"):
        embed(dataset(1), workers=0)
    with pytest.raises(errors.ArgumentError, match=r"workers=\(3, 2\)"):
        embed(dataset(1), workers=(3, 2))
    for wrong in ((1, 2, 3), "2", 1.5, (1, 2.5), None):
        with pytest.raises(errors.ArgumentError, match="workers="):
            embed(dataset(1), workers=wrong)
    for wrong in (0, float("nan"), float("inf")):
        with pytest.raises(errors.ArgumentError, match=f"cpus={wrong}"):
            embed(dataset(1), cpus=wrong)
    with pytest.raises(TypeError, match="cpus must be a number, not str"):
        embed(dataset(1), cpus="2")
    with pytest.raises(errors.ArgumentError, match="batch_size=0"):
        embed(dataset(1), batch_size=0)
    with pytest.raises(errors.ConfigError):
        embed(dataset(1), config={"dtype": "int3"})


def test_numbers_of_numpy_are_pools():
    assert _pool(np.int64(2)) == (2, 2)
    assert _pool((np.int64(1), 3)) == (1, 3)
    with pytest.raises(errors.ArgumentError, match="workers=True"):
        _pool(True)


def test_a_deployment_that_cannot_start_is_refused():
    models = {"turkish": TURKISH_MODEL}
    for wrong in (["a"], "abc", None):
        with pytest.raises(TypeError, match="models must be a mapping of public names to sources"):
            deployment(wrong)
    with pytest.raises(TypeError, match=r"models\['a'\] must be a str, not int"):
        deployment({"a": 1})
    with pytest.raises(errors.ArgumentError, match="models is empty"):
        deployment({})
    with pytest.raises(TypeError, match="models_per_replica must be an int, not str"):
        deployment(models, models_per_replica="3")
    with pytest.raises(errors.ArgumentError, match="models_per_replica=0"):
        deployment(models, models_per_replica=0)
    with pytest.raises(TypeError, match="cpus must be a number"):
        deployment(models, cpus="2")
    with pytest.raises(errors.ArgumentError, match="cpus=0"):
        deployment(models, cpus=0)
    with pytest.raises(errors.ConfigError):
        deployment(models, config={"dtype": "int3"})
    with pytest.raises(TypeError, match="portt"):
        deployment(models, server={"portt": 1})
    with pytest.raises(ValueError, match="port"):
        deployment(models, server={"port": -1})


def test_ray_serve_answers_and_multiplexes(cluster, expected, monkeypatch):
    from ray import serve

    monkeypatch.setattr("ray.serve._private.api.HTTP_PROXY_TIMEOUT", 300)

    models = {"turkish": TURKISH_MODEL, "english": str(FIXTURES / "bert_wordpiece")}
    port = 18000 + os.getpid() % 10_000
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(deployment(models, config=CONFIG, cpus=0.5, models_per_replica=1))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:

            def ask(model, **headers):
                body = {"model": model, "input": TEXTS[:2]}
                answer = client.post("/v1/embeddings", json=body, headers=headers)
                assert answer.status_code == 200, answer.text
                return np.array([item["embedding"] for item in answer.json()["data"]], np.float32)

            with tiny() as manager:
                turkish = manager.embed(TEXTS[:2], "turkish_sentence")
            np.testing.assert_allclose(ask("turkish"), turkish, atol=1e-6)
            assert ask("english", serve_multiplexed_model_id="english").shape == (2, 32)
            ask("turkish", serve_multiplexed_model_id="turkish")
            # One model a replica: the other one leaves memory.
            deadline = time.monotonic() + 300
            while time.monotonic() < deadline:
                loaded = [model["name"] for model in client.get("/api/ps").json()["models"]]
                if loaded == ["turkish:latest"]:
                    break
                time.sleep(0.1)
            assert loaded == ["turkish:latest"]
            assert client.post("/v1/embeddings", json={"model": "none", "input": "x"}).status_code == 404
    finally:
        serve.shutdown()
    with pytest.raises(errors.ArgumentError, match="models is empty"):
        deployment({})


def counting(actors=1, folder=None):
    """An embedder that also says which process computed a batch, and what its manager has done until then. Its first
    batch waits until so many `actors` have one, which leave their mark in `folder`. A local class is pickled by value:
    the actors cannot import this file.
    """

    class Counting(BatchEmbedder):
        def __call__(self, batch):
            if folder is not None:
                (folder / str(os.getpid())).touch()
                deadline = time.monotonic() + 100
                while len(os.listdir(folder)) < actors and time.monotonic() < deadline:
                    time.sleep(0.01)
            made = super().__call__(batch)
            stats = self._loaded().manager.stats()
            figures = {
                "process": os.getpid(),
                "loads": sum(stats["tracker"]["load_counts"].values()),
                "computed": stats["queue"]["texts"],
            }
            for name, value in figures.items():
                made = made.append_column(name, [[value] * len(made)])
            return made

    return Counting


def test_each_actor_loads_the_model_once(cluster, expected, monkeypatch, tmp_path):
    monkeypatch.setattr("model_manager.ray.BatchEmbedder", counting(2, tmp_path))
    rows = embed(dataset(12), TURKISH_MODEL, workers=2, cpus=1, batch_size=25, config=CONFIG).take_all()
    loads = {}
    for row in rows:
        loads.setdefault(row["process"], set()).add(row["loads"])
    assert len(loads) == 2, "both actors have worked"
    assert set(map(frozenset, loads.values())) == {frozenset({1})}


def test_a_second_run_with_redis_computes_nothing(cluster, expected, monkeypatch, redis_server, tmp_path):
    monkeypatch.setattr("model_manager.ray.BatchEmbedder", counting())
    redis = redis_server()
    # The folder of the disk tier also remembers which models the files are.
    config = {**CONFIG, "cache_url": redis.url, "cache_disk": str(tmp_path), "cache_timeout": 2.0}

    def run():
        return embed(dataset(6), TURKISH_MODEL, workers=1, cpus=1, batch_size=50, config=config).take_all()

    first = run()
    assert max(row["computed"] for row in first) > 0
    until(lambda: int(redis.call("DBSIZE")[1:].strip()) == len(TEXTS))
    for path in tmp_path.iterdir():
        if path.name != "models":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    second = run()
    assert {row["computed"] for row in second} == {0}
    second.sort(key=lambda row: row["id"])
    assert np.array_equal(np.array([row["embedding"] for row in second], np.float32), expected)
