"""Dask: the vectors of a frame's texts, partition by partition.

python examples/with_dask.py texts.parquet vectors.parquet [MODEL]
"""

from __future__ import annotations

import sys

import dask.dataframe as dd
from model_manager.batch import BatchEmbedder


def main(source: str, target: str, model: str = "intfloat/multilingual-e5-small") -> None:
    embed = BatchEmbedder(model, column="text", output="embedding", config={"threads": 1})
    frame = dd.read_parquet(source, columns=["id", "text"])
    # Dask asks for the columns of the result with an empty frame, which loads no model.
    made = frame.map_partitions(embed.map_partition, meta=embed.map_partition(frame._meta))
    made.to_parquet(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
