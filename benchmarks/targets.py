"""The targets next to the results of a run: ratios within the run, and absolute limits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import report

Figures = Mapping[str, float]
ONNX, OPENVINO, OPENVINO_BF16 = "onnxruntime-f32", "openvino-f32", "openvino-bf16"
WORKLOADS = ("short", "passage", "long")


@dataclass(frozen=True)
class Target:
    """`measure` of our figures and those of `peer` (ours again without one) is to be at least, or at most, `limit`."""

    what: str
    measure: Callable[[Figures, Figures], float]
    limit: float
    peer: str | None = None
    at_least: bool = True

    def row(self, ours: str, results: Mapping[str, Figures]) -> list[str] | None:
        """None when a figure is missing."""
        try:
            found = self.measure(results[ours], results[self.peer or ours])
        except KeyError:
            return None
        sign, reached = ("≥", found >= self.limit) if self.at_least else ("≤", found <= self.limit)
        return [f"{ours}: {self.what}", f"{found:.5g}", f"{sign} {self.limit:g}", "yes" if reached else "no"]


def faster(workload: str, peer: str, limit: float) -> Target:
    return Target(f"{workload}, times {peer}", lambda ours, theirs: ours[workload] / theirs[workload], limit, peer)


def common(one: float, peak: float, error: float) -> list[Target]:
    """`one`: latency of a short text as a share of onnxruntime's; `peak`: MB; `error`: largest difference."""
    return [
        Target("one short text, times " + ONNX, lambda o, t: o["one_p50"] / t["one_p50"], one, ONNX, at_least=False),
        Target("16 threads, share of batched", lambda o, _: 16_000 / o["threads"] / o["short"], 0.8),
        Target("peak MB", lambda o, _: o["peak"], peak, at_least=False),
        Target("cold process to first vector, s", lambda o, _: o["cold"], 0.15, at_least=False),
        Target("largest difference", lambda o, _: o["max_difference"], error, at_least=False),
    ]


# bfloat16's factors are those of a CPU with AMX, which multiplies six times as fast as in float32.
ENGINE: dict[str, list[Target]] = {
    "model_manager-f32": [
        *(faster(workload, peer, 1.6) for peer in (ONNX, OPENVINO) for workload in WORKLOADS),
        *common(one=0.6, peak=250, error=1e-5),
    ],
    "model_manager-auto": [
        *(faster(workload, OPENVINO_BF16, 2.5) for workload in WORKLOADS),
        *(faster(workload, ONNX, 7) for workload in WORKLOADS),
        *common(one=0.25, peak=200, error=4e-3),
        Target("smallest cosine", lambda o, _: o["min_cosine"], 0.9998),
    ],
}


LLAMA_CPP, TRANSFORMERS = "llama-cpp-python", "transformers-f32"


def quantized(file_mb: float, read_gb_s: float) -> dict[str, list[Target]]:
    """Of a GGUF file of so many MB, on a machine that reads so many GB a second from memory."""
    limit = read_gb_s * 1000 / file_mb  # tokens a second: each reads all weights once
    return {
        "model_manager": [
            faster("decode", LLAMA_CPP, 1.5),
            Target(f"decode, share of {limit:.0f} tokens/s that memory allows", lambda o, _: o["decode"] / limit, 0.6),
            faster("prefill", LLAMA_CPP, 5),
            Target("4 at once, times one alone", lambda o, _: o["gain"], 2.5),
            Target("MB in addition to file and interpreter", lambda o, _: o["model"] - file_mb, 100, at_least=False),
        ]
    }


PLAIN = {"model_manager-f32": [faster("decode", TRANSFORMERS, 3)]}
"""Of a GPT-2 in float32."""


def render(results: Mapping[str, Figures], wanted: Mapping[str, list[Target]] = ENGINE) -> str:
    """A table of all targets whose figures this run has; empty without any."""
    rows = [row for ours, targets in wanted.items() for target in targets if (row := target.row(ours, results))]
    return report.table([["target", "found", "wanted", "reached"], *rows]) if rows else ""
