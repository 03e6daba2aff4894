"""Asks a server in every dialect, with the clients that people have, and judges the answers.

Usage: clients.py URL PHOTO LABEL

Each way of asking is one line; exit code 1 if an answer is not LABEL.
"""

import asyncio
import base64
import sys

import httpx
import numpy
import tritonclient.http as triton
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput
from PIL import Image

MODEL = "default"


def prepared(photo, how):
    """The photo as the network wants it, from what the model's metadata says."""
    image = Image.open(photo).convert("RGB")
    scale = how["resize"] / min(image.size)
    image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
    left, top = [(side - how["crop"]) // 2 for side in image.size]
    image = image.crop((left, top, left + how["crop"], top + how["crop"]))
    values = (numpy.asarray(image, numpy.float32) - how["mean"]) / how["deviation"]
    return numpy.ascontiguousarray(values.transpose(2, 0, 1)[None], numpy.float32)


def element(photo, binary):
    """An encoded image as element of a BYTES tensor: as it is, or as base64 where JSON holds it."""
    return numpy.array([photo if binary else base64.b64encode(photo)], object)


def index_and_label(text):
    """What a `value:index:label` says."""
    _, index, label = (text.decode() if isinstance(text, bytes) else text).split(":", 2)
    return int(index), label


def ask_triton(url, photo, pixels):
    """Triton's client: both inputs and both outputs, as JSON and as binary data."""
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(MODEL)
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_config(MODEL)["max_batch_size"] >= 1
    assert client.get_model_repository_index()[0]["state"] == "READY"
    for binary in (False, True):
        for kind, data in (("BYTES", element(photo, binary)), ("FP32", pixels)):
            form = "binary" if binary else "JSON"
            asked = triton.InferInput("input", list(data.shape), kind)
            asked.set_data_from_numpy(data, binary_data=binary)
            best = triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=1)
            logits = triton.InferRequestedOutput("logits", binary_data=binary)
            answer = client.infer(MODEL, [asked], outputs=[best, logits], request_id="42")
            assert answer.get_response()["id"] == "42"
            index, label = index_and_label(answer.as_numpy("probabilities")[0][0])
            assert answer.as_numpy("logits").argmax() == index
            yield f"tritonclient, {kind}, {form}", label
    client.close()


async def ask_kserve(url, photo, pixels):
    """KServe's client, in both protocols."""
    found = []
    async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=60)) as client:
        assert await client.is_server_live(url) and await client.is_server_ready(url)
        assert await client.is_model_ready(url, MODEL)
        for binary in (False, True):
            for kind, data in (("BYTES", element(photo, binary)), ("FP32", pixels)):
                form = "binary" if binary else "JSON"
                asked = InferInput("input", list(data.shape), kind)
                asked.set_data_from_numpy(data, binary_data=binary)
                best = RequestedOutput("probabilities", {"classification": 1, "binary_data": binary})
                request = InferRequest(MODEL, [asked], request_outputs=[best])
                answer = await client.infer(url, request, MODEL)
                _, label = index_and_label(answer.outputs[0].as_numpy().flatten()[0])
                found.append((f"kserve V2, {kind}, {form}", label))
    async with InferenceRESTClient(RESTConfig(protocol="v1", timeout=60)) as client:
        assert await client.is_model_ready(url, MODEL)
        encoded = base64.b64encode(photo).decode()
        instances = {"b64": encoded}, {"image_bytes": {"b64": encoded}}, pixels[0].tolist()
        answer = await client.infer(url, {"instances": instances}, MODEL)
        for kind, best in zip(("b64", "image_bytes", "FP32"), answer["predictions"], strict=True):
            found.append((f"kserve V1, {kind}", best[0]["label"]))
    return found


def ask_plainly(url, photo):
    """Dialects that need no client of their own."""
    form = {"data": ("photo.jpg", photo, "image/jpeg")}
    for method, files, body in (("POST", form, None), ("PUT", None, photo)):
        answer = httpx.request(method, f"{url}/predictions/{MODEL}", files=files, content=body, timeout=60)
        best = next(iter(answer.raise_for_status().json()))
        yield f"TorchServe, {method}, {'form' if files else 'body'}", best
    answer = httpx.post(f"{url}/predict", content=photo, timeout=60).raise_for_status()
    yield "/predict", answer.json()["predictions"][0]["label"]


def main():
    url, path, label = sys.argv[1:]
    with open(path, "rb") as file:
        photo = file.read()
    metadata = httpx.get(f"{url}/v2/models/{MODEL}").raise_for_status().json()
    how = next(tensor["parameters"] for tensor in metadata["inputs"] if tensor["datatype"] == "FP32")
    pixels = prepared(path, how)
    found = [*ask_triton(url, photo, pixels)]
    found += asyncio.run(ask_kserve(url, photo, pixels))
    found += ask_plainly(url, photo)
    for way, answer in found:
        print(f"{'ok   ' if answer == label else 'WRONG'} {way}: {answer}")
    return int(any(answer != label for _, answer in found))


if __name__ == "__main__":
    sys.exit(main())
