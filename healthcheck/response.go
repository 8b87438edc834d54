package healthcheck

import (
	"bytes"
	"strconv"
)

const (
	maxResponse = 4096 // bytes of an answer that are read at most
	maxExcerpt  = 64   // bytes of a body that go into an error
)

// response is what an HTTP answer says, as far as a health check cares.
type response struct {
	status  int
	body    []byte // what has been read of it, or of its first chunk
	bodyLen int    // of the body or its first chunk; -1: unknown
}

// parseResponse reads the beginning of an HTTP/1 answer. It returns false while
// more bytes are needed; with maxResponse bytes it always comes to a conclusion:
// a status line is enough when the header is longer. It keeps parts of buf.
// Interim answers (1xx) are skipped.
func parseResponse(buf []byte) (response, bool, error) {
	all := buf
	for {
		line, rest, complete := cutLine(all)
		status, err := parseStatus(line, complete)
		if err != nil {
			return response{}, false, err
		}
		if !complete {
			if len(buf) >= maxResponse {
				return response{}, false, malformed("a status line that does not end")
			}
			return response{}, false, nil
		}
		r := response{status: status, bodyLen: -1}
		body, ended := r.header(rest)
		if !ended {
			return r, len(buf) >= maxResponse, nil
		}
		if status >= 200 || status == 101 {
			r.body = body
			return r, true, nil
		}
		if len(buf) >= maxResponse {
			return response{}, false, malformed("interim answers without end")
		}
		all = body
	}
}

// parseStatus reads a status line, or the beginning of one: what cannot become a
// status line is an error at once.
func parseStatus(line []byte, complete bool) (int, error) {
	const shape = "HTTP/1.x nnn"
	for i := range min(len(line), len(shape)) {
		switch b := line[i]; shape[i] {
		case 'n', 'x':
			if b < '0' || b > '9' {
				return 0, foreign(line)
			}
		default:
			if b != shape[i] {
				return 0, foreign(line)
			}
		}
	}
	if !complete {
		return 0, nil
	}
	if len(line) < len(shape) || (len(line) > len(shape) && line[len(shape)] != ' ') {
		return 0, foreign(line)
	}
	status, err := strconv.Atoi(string(line[len(shape)-3 : len(shape)]))
	if err != nil || status < 100 {
		return 0, foreign(line)
	}
	return status, nil
}

// header reads the fields that matter and returns what follows the header.
func (r *response) header(rest []byte) (body []byte, ended bool) {
	chunked := false
	for {
		line, next, complete := cutLine(rest)
		if !complete {
			return nil, false
		}
		rest = next
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if n, err := strconv.ParseUint(string(value), 10, 31); err == nil {
				r.bodyLen = int(n)
			}
		case bytes.EqualFold(name, []byte("Transfer-Encoding")):
			chunked = bytes.EqualFold(value, []byte("chunked"))
		}
	}
	if chunked {
		rest = r.chunk(rest)
	}
	if r.bodyLen >= 0 && len(rest) > r.bodyLen {
		rest = rest[:r.bodyLen]
	}
	return rest, true
}

// chunk takes the first chunk for the body, which is enough for an error.
func (r *response) chunk(rest []byte) []byte {
	r.bodyLen = -1
	line, body, complete := cutLine(rest)
	if !complete {
		return nil
	}
	size, _, _ := bytes.Cut(line, []byte(";"))
	if n, err := strconv.ParseUint(string(bytes.TrimSpace(size)), 16, 31); err == nil {
		r.bodyLen = int(n)
	}
	return body
}

// cutLine splits after the first line break, which may lack its carriage return.
func cutLine(buf []byte) (line, rest []byte, complete bool) {
	line, rest, complete = bytes.Cut(buf, []byte("\n"))
	if complete {
		line = bytes.TrimSuffix(line, []byte("\r"))
	}
	return line, rest, complete
}

// excerpted reports whether the body holds as much as an error will show.
func (r response) excerpted() bool {
	return len(r.body) >= maxExcerpt || (r.bodyLen >= 0 && len(r.body) >= r.bodyLen)
}

// failure judges the answer; nil is a success.
func (r response) failure() *Failure {
	if r.status >= 200 && r.status <= 299 {
		return nil
	}
	text := "HTTP " + strconv.Itoa(r.status)
	if s := printable(r.body, maxExcerpt); s != "" {
		text += " " + strconv.Quote(s)
	}
	return &Failure{Reason: HTTPStatus, Text: text, Draining: r.status == 503}
}

func foreign(line []byte) error { return malformed(strconv.Quote(printable(line, 16))) }

func malformed(what string) error {
	return &Failure{Reason: ProtocolErr, Text: "the answer is not HTTP/1: " + what}
}
