"""Spark: the vectors of a table's texts, computed in the executors.

spark-submit examples/with_spark.py texts.parquet vectors.parquet [MODEL]
"""

from __future__ import annotations

import sys

from model_manager.batch import BatchEmbedder

SCHEMA = "id long, text string, embedding array<float>"


def embedder(model: str) -> BatchEmbedder:
    """What each executor runs. It is sent as settings, and loads the model in the process that first calls it."""
    # One thread for each task of Spark, which itself runs one task a core.
    return BatchEmbedder(model, column="text", output="embedding", config={"threads": 1}, on_error="null")


def main(source: str, target: str, model: str = "intfloat/multilingual-e5-small") -> None:
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.appName("vectors").getOrCreate()
    texts = spark.read.parquet(source).select("id", "text")
    texts.mapInArrow(embedder(model).map_arrow, SCHEMA).write.parquet(target)
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
