// The CloudEvents SDK of JavaScript as a producer and as a consumer; tests/integration/interop.rs says what of.
//
//     interop.js produce MODE URL FILE    posts the events of FILE: binary, structured or batch
//     interop.js consume                  prints one JSON line for each event that is posted to it

const { readFileSync } = require("node:fs");
const { createServer } = require("node:http");
const { CloudEvent, HTTP } = require("cloudevents");

function eventOf(given, mode) {
  const event = { ...given.attributes };
  if ("base64" in given) {
    event.data = new Uint8Array(Buffer.from(given.base64, "base64"));
  } else if ("json" in given) {
    // In binary mode the SDK sends a JSON string without its quotes.
    event.data = mode === "binary" ? JSON.stringify(given.json) : given.json;
  } else {
    event.data = given.text;
  }
  return new CloudEvent(event);
}

// The SDK leaves the percent-encoding of headers to whoever calls it, and Node.js rejects what is beyond Latin-1.
function encodeHeader(value) {
  return String(value).replace(/[^\x21-\x7e]|["%]/gu, (character) =>
    Buffer.from(character).reduce((text, byte) => `${text}%${byte.toString(16).padStart(2, "0").toUpperCase()}`, ""),
  );
}

function decodeHeader(value) {
  // Node.js reads headers as Latin-1.
  const text = Buffer.from(value, "latin1").toString();
  return text.replace(/(?:%[0-9a-f]{2})+/gi, decodeURIComponent);
}

function mapHeaders(headers, change) {
  const changed = ([name, value]) => [name, name.startsWith("ce-") ? change(value) : value];
  return Object.fromEntries(Object.entries(headers).map(changed));
}

function messages(events, mode) {
  if (mode === "batch") {
    // The SDK reads batches and has no function that writes one: the array around its events is ours.
    return [{ headers: { "content-type": "application/cloudevents-batch+json" }, body: JSON.stringify(events) }];
  }
  if (mode === "structured") {
    return events.map((event) => HTTP.structured(event));
  }
  return events.map((event) => {
    const { headers, body } = HTTP.binary(event);
    if (!event.datacontenttype) {
      // The SDK says that what has no content type is JSON, also when there is no data.
      delete headers["content-type"];
    }
    return { headers: mapHeaders(headers, encodeHeader), body };
  });
}

async function produce(mode, url, file) {
  const events = JSON.parse(readFileSync(file, "utf8")).map((given) => eventOf(given, mode));
  for (const { headers, body } of messages(events, mode)) {
    const response = await fetch(url, { method: "POST", headers, body });
    if (response.status !== 202) {
      throw new Error(`${response.status}: ${await response.text()}`);
    }
  }
}

function dataOf(event) {
  if (event.data === undefined || event.data === "") {
    return Buffer.of();
  }
  if (ArrayBuffer.isView(event.data)) {
    // From `data_base64` the SDK makes an array with an element of 32 bits for each byte.
    return Buffer.from(event.data);
  }
  return Buffer.from(/json/.test(event.datacontenttype ?? "json") ? JSON.stringify(event.data) : event.data);
}

function show(request, body) {
  const contentType = request.headers["content-type"] ?? "";
  const isText = /json|text/.test(contentType);
  const headers = mapHeaders(request.headers, decodeHeader);
  const event = HTTP.toEvent({ headers, body: isText ? body.toString() : body });
  const { data, data_base64, ...attributes } = event;
  const line = { path: request.url, contentType, attributes, data: dataOf(event).toString("base64") };
  console.log(JSON.stringify(line));
}

function consume() {
  const server = createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) {
      chunks.push(chunk);
    }
    show(request, Buffer.concat(chunks));
    response.writeHead(204).end();
  });
  server.listen(0, "127.0.0.1", () => {
    const address = `127.0.0.1:${server.address().port}`;
    console.log(JSON.stringify({ message: "listening", listener: "consumer", address }));
  });
}

const [command, ...rest] = process.argv.slice(2);
command === "consume" ? consume() : produce(...rest);
