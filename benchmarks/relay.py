"""An embedding server that computes nothing: OpenAI's protocol in front, Ollama's API behind.

It sends one request for each text, one after another, as small embedding servers in front of Ollama do. The comparison
of `ollama_api.py`.

    OLLAMA_URL=http://127.0.0.1:11434 python benchmarks/relay.py MODEL
"""

import os
import sys
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

MODEL = sys.argv[1] if len(sys.argv) > 1 else "model"
# llama.cpp's own server speaks OpenAI's protocol.
PATH, FIELD = ("/v1/embeddings", "input") if os.environ.get("RELAY_API") == "openai" else ("/api/embeddings", "prompt")


@asynccontextmanager
async def lifespan(app: FastAPI):
    # One client with open connections; a new one for each text would make the relay slower still.
    async with httpx.AsyncClient(base_url=os.environ["OLLAMA_URL"], timeout=60) as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "healthy"}


@app.post("/v1/embeddings")
async def embeddings(body: dict[str, Any]) -> dict[str, Any]:
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    data = []
    for index, text in enumerate(texts):
        answer = await app.state.client.post(PATH, json={"model": MODEL, FIELD: text})
        answer.raise_for_status()
        found = answer.json()
        vector = found["embedding"] if FIELD == "prompt" else found["data"][0]["embedding"]
        data.append({"object": "embedding", "index": index, "embedding": vector})
    count = sum(len(text.split()) for text in texts)
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"object": "list", "data": data, "model": MODEL, "usage": usage}


if __name__ == "__main__":
    uvicorn.run(app, port=0, access_log=False)
