"""The CloudEvents SDK of Python as a producer and as a consumer; tests/integration/interop.rs says what of.

    interop.py produce MODE URL FILE    posts the events of FILE: binary, structured or batch
    interop.py consume                  prints one JSON line for each event that is posted to it
"""

import base64
import json
import sys
from datetime import datetime
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from cloudevents.core.bindings import http
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from dateutil.parser import isoparse


def event_of(given, mode):
    attributes = dict(given["attributes"])
    attributes["time"] = isoparse(attributes["time"])
    if mode == "binary":
        # The SDK writes `True` where the canonical form is `true`.
        for name, value in attributes.items():
            if isinstance(value, bool):
                attributes[name] = str(value).lower()
    if "base64" in given:
        data = base64.b64decode(given["base64"])
    elif "json" in given and mode == "binary":
        # The SDK sends a JSON string without its quotes.
        data = json.dumps(given["json"]).encode()
    else:
        data = given.get("json", given.get("text"))
    return CloudEvent(attributes, data)


def messages(events, mode):
    if mode == "binary":
        return [http.to_binary_event(event) for event in events]
    structured = [http.to_structured_event(event) for event in events]
    if mode == "structured":
        return structured
    # The SDK has no batches: the array around its events is ours.
    body = b"[" + b",".join(message.body for message in structured) + b"]"
    headers = {"content-type": "application/cloudevents-batch+json"}
    return [http.HTTPMessage(headers=headers, body=body)]


def produce(mode, url, file):
    with open(file, encoding="utf-8") as text:
        events = [event_of(given, mode) for given in json.load(text)]
    target = urlsplit(url)
    connection = HTTPConnection(target.netloc, timeout=30)
    for message in messages(events, mode):
        connection.request("POST", target.path, message.body, message.headers)
        response = connection.getresponse()
        answer = response.read().decode()
        if response.status != 202:
            sys.exit(f"{response.status}: {answer}")


def data_of(event):
    data = event.get_data()
    if data is None or isinstance(data, bytes):
        return data or b""
    if "json" in (event.get_datacontenttype() or "application/json"):
        return json.dumps(data).encode()
    return data.encode()


def shown(value):
    return value.isoformat() if isinstance(value, datetime) else value


class Consumer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"] or 0))
        # The server of the standard library reads headers as Latin-1.
        headers = {name: value.encode("latin-1").decode() for name, value in self.headers.items()}
        event = http.from_http_event(http.HTTPMessage(headers=headers, body=body), JSONFormat())
        line = {
            "path": self.path,
            "contentType": headers.get("content-type", ""),
            "attributes": {name: shown(value) for name, value in event.get_attributes().items()},
            "data": base64.b64encode(data_of(event)).decode(),
        }
        print(json.dumps(line), flush=True)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def consume():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Consumer)
    address = "{}:{}".format(*server.server_address)
    print(json.dumps({"message": "listening", "listener": "consumer", "address": address}), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "consume":
        consume()
    else:
        produce(*sys.argv[2:])
