"""What the two Python services share: HTTP, decoding and the answer. Only the network's engine differs.

One process, one thread, one request at a time and first come, first served: on one core that is what holds the
tail best. uvloop and httptools, no access log; JPEGs through libjpeg-turbo; only the crop's pixels are resized.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from PIL import Image

import photos
from network import NETWORKS, SIDE, Network

BODY_BYTES_MAX = 10 << 20
TOP_K = 5
KEEP_ALIVE_S = 60
LABELS = Path(__file__).resolve().parent.parent.parent / "weights" / "imagenet_classes.txt"
STARTED = time.monotonic()

# Images `[1, 3, 224, 224]` to logits `[1000]`.
Infer = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def arguments(description: str, engines: list[str]) -> argparse.Namespace:
    """What both services are told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("engine", choices=engines)
    parser.add_argument("--network", choices=NETWORKS, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True, help="folder that export.py wrote")
    return parser.parse_args()


class Decoder:
    """Bytes to the network's input, `[1, 3, 224, 224]`."""

    def __init__(self, network: Network) -> None:
        self._preprocessing = network.preprocessing
        mean = np.array(network.preprocessing.mean, np.float32)
        deviation = np.array(network.preprocessing.deviation, np.float32)
        # pixel / deviation - mean / deviation: one multiplication and one addition, in place.
        self._factor = (1 / deviation).reshape(3, 1, 1)
        self._offset = (-mean / deviation).reshape(3, 1, 1)

    def __call__(self, body: bytes) -> NDArray[np.float32]:
        crop = np.asarray(photos.crop(self._read(body), self._preprocessing))
        image = np.empty((1, 3, SIDE, SIDE), np.float32)
        np.multiply(crop.transpose(2, 0, 1), self._factor, out=image[0])
        image += self._offset
        return image

    @staticmethod
    def _read(body: bytes) -> Image.Image:
        if simplejpeg.is_jpeg(body):
            return Image.fromarray(simplejpeg.decode_jpeg(body, "RGB"))
        return Image.open(io.BytesIO(body)).convert("RGB")


def application(network: Network, infer: Infer) -> FastAPI:
    """`POST /predict` with the image's bytes; `GET /readyz`."""
    decode = Decoder(network)
    labels = LABELS.read_text().splitlines()
    app = FastAPI()

    def predict(body: bytes) -> list[dict[str, object]]:
        logits = infer(decode(body))
        best = np.argpartition(logits, -TOP_K)[-TOP_K:]
        best = best[np.argsort(-logits[best])]
        powers = np.exp(logits - logits[best[0]])
        probabilities = powers[best] / powers.sum()
        return [
            {"label": labels[index], "index": int(index), "probability": float(probability)}
            for index, probability in zip(best, probabilities, strict=True)
        ]

    @app.post("/predict")
    async def classify(request: Request) -> JSONResponse:
        body = await request.body()
        if len(body) > BODY_BYTES_MAX:
            return JSONResponse({"error": "the image is too large"}, 413)
        try:
            return JSONResponse({"model": network.name, "predictions": predict(body)})
        except (OSError, ValueError) as error:
            return JSONResponse({"error": f"not an image that can be read: {error}"}, 400)

    @app.get("/readyz")
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": True})

    return app


def serve(network: Network, infer: Infer) -> None:
    """Warms up, listens on a free port of the loopback, and says where, as `elastic serve-model --child` does."""
    for _ in range(5):
        infer(np.zeros((1, 3, SIDE, SIDE), np.float32))
    # What was loaded stays: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    config = uvicorn.Config(
        application(network, infer),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    print(json.dumps({"ready": url, "startup_ms": round((time.monotonic() - STARTED) * 1000)}), flush=True)
    uvicorn.Server(config).run(sockets=[listener])
