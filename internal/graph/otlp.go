package graph

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// record is a span or a log record of OpenTelemetry.
type record struct {
	begin, end time.Time
	attributes map[string]string
	failed     bool
}

// otlpSightings reads traces and logs as OTLP/HTTP sends them, in JSON or
// protobuf. https://opentelemetry.io/docs/specs/otlp/
func otlpSightings(header http.Header, body []byte) []sighting {
	var list []record
	if strings.Contains(header.Get("Content-Type"), "json") || len(body) > 0 && body[0] == '{' {
		list = jsonRecords(body)
	} else {
		list = protoRecords(body)
	}
	var found []sighting
	for _, r := range list {
		if s, ok := r.sighting(); ok {
			found = append(found, s)
		}
	}
	return found
}

// Names of attributes: those of the GenAI conventions, then those of agents.
var (
	callNames   = []string{"gen_ai.tool.call.id", "tool_use_id", "tool_call_id", "call_id"}
	toolNames   = []string{"gen_ai.tool.name", "tool_name", "function_name"}
	inputNames  = []string{"gen_ai.tool.call.arguments", "tool_input", "arguments", "function_args"}
	resultNames = []string{"gen_ai.tool.call.result", "tool_output", "output"}
)

func (r record) first(names []string) (string, bool) {
	for _, n := range names {
		if v, ok := r.attributes[n]; ok {
			return v, true
		}
	}
	return "", false
}

func (r record) sighting() (sighting, bool) {
	s := sighting{source: "otlp", begin: r.begin, end: r.end, agent: r.attributes["agent_id"]}
	s.call, _ = r.first(callNames)
	s.tool, _ = r.first(toolNames)
	s.input, _ = r.first(inputNames)
	success, told := r.attributes["success"]
	s.failed = r.failed || success == "false"
	s.refused = r.attributes["decision"] == "reject" || r.attributes["decision"] == "denied"
	var result bool
	s.result, result = r.first(resultNames)
	s.ended = result || told || !r.begin.IsZero() || s.refused
	if ms, err := strconv.ParseFloat(r.attributes["duration_ms"], 64); err == nil && s.begin.IsZero() && ms >= 0 && ms < 1e12 {
		s.begin = s.end.Add(-time.Duration(ms * float64(time.Millisecond)))
	}
	return s, s.call != ""
}

// nanos is a time in nanoseconds since 1970; the zero time for nonsense.
func nanos(n uint64) time.Time {
	if n == 0 || n > math.MaxInt64 {
		return time.Time{}
	}
	return time.Unix(0, int64(n)).UTC()
}

// wholeNumber is one, which JSON of OTLP has in quotes.
type wholeNumber uint64

func (n *wholeNumber) UnmarshalJSON(b []byte) error {
	v, _ := strconv.ParseUint(strings.Trim(string(b), `"`), 10, 64)
	*n = wholeNumber(v)
	return nil
}

type jsonRecord struct {
	Start    wholeNumber `json:"startTimeUnixNano"`
	End      wholeNumber `json:"endTimeUnixNano"`
	Time     wholeNumber `json:"timeUnixNano"`
	Observed wholeNumber `json:"observedTimeUnixNano"`
	Status   struct {
		Code json.RawMessage `json:"code"`
	} `json:"status"`
	Attributes []struct {
		Key   string                     `json:"key"`
		Value map[string]json.RawMessage `json:"value"`
	} `json:"attributes"`
}

func jsonRecords(body []byte) []record {
	var q struct {
		Spans []struct {
			Scopes []struct {
				Spans []jsonRecord `json:"spans"`
			} `json:"scopeSpans"`
		} `json:"resourceSpans"`
		Logs []struct {
			Scopes []struct {
				Records []jsonRecord `json:"logRecords"`
			} `json:"scopeLogs"`
		} `json:"resourceLogs"`
	}
	if json.Unmarshal(body, &q) != nil {
		return nil
	}
	var list []record
	for _, r := range q.Spans {
		for _, s := range r.Scopes {
			for _, j := range s.Spans {
				list = append(list, j.record())
			}
		}
	}
	for _, r := range q.Logs {
		for _, s := range r.Scopes {
			for _, j := range s.Records {
				list = append(list, j.record())
			}
		}
	}
	return list
}

func (j jsonRecord) record() record {
	r := record{begin: nanos(uint64(j.Start)), end: nanos(uint64(j.End)), attributes: map[string]string{}}
	for _, n := range []wholeNumber{j.Time, j.Observed} {
		if r.end.IsZero() {
			r.end = nanos(uint64(n))
		}
	}
	code := strings.Trim(string(j.Status.Code), `"`)
	r.failed = code == "2" || code == "STATUS_CODE_ERROR"
	for _, a := range j.Attributes {
		for _, v := range a.Value {
			r.attributes[a.Key] = plainJSON(v)
		}
	}
	return r
}

// field is one of a protobuf message.
// https://protobuf.dev/programming-guides/encoding/
type field struct {
	number uint64
	wire   byte   // 0 varint, 1 eight bytes, 2 bytes, 5 four bytes
	whole  uint64 // of all but bytes
	bytes  []byte
}

// eachField calls yield with the fields of a message, up to the first that
// makes no sense.
func eachField(b []byte, yield func(field)) {
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		if n <= 0 || tag>>3 == 0 {
			return
		}
		b = b[n:]
		f := field{number: tag >> 3, wire: byte(tag & 7)}
		switch f.wire {
		case 0:
			if f.whole, n = binary.Uvarint(b); n <= 0 {
				return
			}
		case 1:
			if n = 8; len(b) < n {
				return
			}
			f.whole = binary.LittleEndian.Uint64(b)
		case 2:
			size, m := binary.Uvarint(b)
			if m <= 0 || size > uint64(len(b)-m) {
				return
			}
			n = m + int(size)
			f.bytes = b[m:n]
		case 5:
			if n = 4; len(b) < n {
				return
			}
			f.whole = uint64(binary.LittleEndian.Uint32(b))
		default:
			return
		}
		b = b[n:]
		yield(f)
	}
}

// protoRecords reads an ExportTraceServiceRequest or an
// ExportLogsServiceRequest, whose outer messages have the same numbers.
func protoRecords(body []byte) []record {
	var list []record
	within := func(b []byte, number uint64, yield func([]byte)) {
		eachField(b, func(f field) {
			if f.number == number && f.wire == 2 {
				yield(f.bytes)
			}
		})
	}
	within(body, 1, func(resource []byte) {
		within(resource, 2, func(scope []byte) {
			within(scope, 2, func(b []byte) { list = append(list, protoRecord(b)) })
		})
	})
	return list
}

// protoRecord reads a Span or a LogRecord. Field 1 is a span's trace id and a
// log record's time.
func protoRecord(b []byte) record {
	r := record{attributes: map[string]string{}}
	log := false
	eachField(b, func(f field) {
		switch {
		case f.number == 1 && f.wire == 1:
			log, r.end = true, nanos(f.whole)
		case f.number == 11 && f.wire == 1 && r.end.IsZero():
			log, r.end = true, nanos(f.whole)
		case f.number == 7 && f.wire == 1:
			r.begin = nanos(f.whole)
		case f.number == 8 && f.wire == 1 && !log:
			r.end = nanos(f.whole)
		case (f.number == 9 || f.number == 6) && f.wire == 2:
			if key, v := keyValue(f.bytes); key != "" {
				r.attributes[key] = v
			}
		case f.number == 15 && f.wire == 2:
			eachField(f.bytes, func(f field) { r.failed = r.failed || f.number == 3 && f.whole == 2 })
		}
	})
	return r
}

// keyValue reads a KeyValue with a plain value.
func keyValue(b []byte) (key, v string) {
	eachField(b, func(f field) {
		switch {
		case f.number == 1:
			key = string(f.bytes)
		case f.number == 2:
			eachField(f.bytes, func(f field) { v = anyValue(f) })
		}
	})
	return key, v
}

func anyValue(f field) string {
	switch f.number {
	case 1:
		return string(f.bytes)
	case 2:
		return strconv.FormatBool(f.whole != 0)
	case 3:
		return strconv.FormatInt(int64(f.whole), 10)
	case 4:
		return strconv.FormatFloat(math.Float64frombits(f.whole), 'g', -1, 64)
	}
	return ""
}
