// The CloudEvents SDK of Go as a producer and as a consumer; tests/integration/interop.rs says what of.
//
//	interop produce MODE URL FILE    posts the events of FILE: binary, unencoded, structured or batch
//	interop consume                  prints one JSON line for each event that is posted to it
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/cloudevents/sdk-go/v2/types"
)

type given struct {
	Attributes map[string]any
	JSON       json.RawMessage
	Text       *string
	Base64     []byte
}

type received struct {
	Path        string         `json:"path"`
	ContentType string         `json:"contentType"`
	Attributes  map[string]any `json:"attributes"`
	Data        []byte         `json:"data"`
}

func main() {
	log.SetFlags(0)
	if os.Args[1] == "consume" {
		consume()
	} else {
		produce(os.Args[2], os.Args[3], os.Args[4])
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func produce(mode, url, file string) {
	text, err := os.ReadFile(file)
	check(err)
	var all []given
	check(json.Unmarshal(text, &all))
	events := make([]event.Event, len(all))
	for i, one := range all {
		events[i] = one.event()
	}
	if mode == "batch" {
		request, err := cehttp.NewHTTPRequestFromEvents(context.Background(), url, events)
		check(err)
		send(request)
		return
	}
	for _, one := range events {
		ctx := context.Background()
		if mode == "structured" {
			ctx = binding.WithForceStructured(ctx)
		}
		request, err := cehttp.NewHTTPRequestFromEvent(ctx, url, one)
		check(err)
		if mode == "binary" {
			// The SDK leaves the percent-encoding of headers to whoever calls it; `unencoded` is what most do.
			mapHeaders(request.Header, encodeHeader)
		}
		send(request)
	}
}

func send(request *http.Request) {
	response, err := http.DefaultClient.Do(request)
	check(err)
	answer, err := io.ReadAll(response.Body)
	check(err)
	check(response.Body.Close())
	if response.StatusCode != http.StatusAccepted {
		log.Fatalf("%s: %s", response.Status, answer)
	}
}

func (g *given) event() event.Event {
	e := event.New()
	var contentType string
	for name, value := range g.Attributes {
		switch name {
		case "specversion":
		case "id":
			e.SetID(value.(string))
		case "source":
			e.SetSource(value.(string))
		case "type":
			e.SetType(value.(string))
		case "subject":
			e.SetSubject(value.(string))
		case "dataschema":
			e.SetDataSchema(value.(string))
		case "datacontenttype":
			contentType = value.(string)
		case "time":
			at, err := types.ParseTime(value.(string))
			check(err)
			e.SetTime(at)
		case "exttimestamp":
			at, err := types.ParseTime(value.(string))
			check(err)
			e.SetExtension(name, at)
		case "extbinary":
			bytes, err := types.ParseBinary(value.(string))
			check(err)
			e.SetExtension(name, bytes)
		case "exturi":
			e.SetExtension(name, types.ParseURI(value.(string)))
		default:
			e.SetExtension(name, value)
		}
	}
	switch {
	case g.JSON != nil:
		check(e.SetData(contentType, g.JSON))
	case g.Text != nil:
		check(e.SetData(contentType, *g.Text))
	case g.Base64 != nil:
		check(e.SetData(contentType, g.Base64))
	}
	return e
}

func mapHeaders(headers http.Header, change func(string) string) {
	for name, values := range headers {
		if strings.HasPrefix(name, "Ce-") {
			for i := range values {
				values[i] = change(values[i])
			}
		}
	}
}

func encodeHeader(value string) string {
	var encoded strings.Builder
	for _, b := range []byte(value) {
		if b <= ' ' || b > '~' || b == '"' || b == '%' {
			fmt.Fprintf(&encoded, "%%%02X", b)
		} else {
			encoded.WriteByte(b)
		}
	}
	return encoded.String()
}

var encoded = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)

func decodeHeader(value string) string {
	return encoded.ReplaceAllStringFunc(value, func(one string) string {
		decoded, err := url.PathUnescape(one)
		check(err)
		return decoded
	})
}

func consume() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	lines := json.NewEncoder(os.Stdout)
	check(lines.Encode(map[string]string{
		"message": "listening", "listener": "consumer", "address": listener.Addr().String(),
	}))
	var lock sync.Mutex
	check(http.Serve(listener, http.HandlerFunc(func(response http.ResponseWriter, request *http.Request) {
		mapHeaders(request.Header, decodeHeader)
		e, err := cehttp.NewEventFromHTTPRequest(request)
		check(err)
		lock.Lock()
		defer lock.Unlock()
		check(lines.Encode(received{
			Path:        request.URL.Path,
			ContentType: request.Header.Get("Content-Type"),
			Attributes:  attributes(e),
			Data:        e.Data(),
		}))
		response.WriteHeader(http.StatusNoContent)
	})))
}

func attributes(e *event.Event) map[string]any {
	all := map[string]any{
		"specversion": e.SpecVersion(), "id": e.ID(), "source": e.Source(), "type": e.Type(),
		"time": e.Time().Format(time.RFC3339Nano),
	}
	for name, value := range map[string]string{
		"subject": e.Subject(), "dataschema": e.DataSchema(), "datacontenttype": e.DataContentType(),
	} {
		if value != "" {
			all[name] = value
		}
	}
	for name, value := range e.Extensions() {
		all[name] = value
	}
	return all
}
