package healthcheck

import (
	"encoding/binary"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
)

// grpcAnswer gathers the answer to a Health/Check from frames.
type grpcAnswer struct {
	service string
	framer  *http2.Framer // for what HTTP/2 demands of the client
	acks    int

	began       bool // the header that is no interim one is here
	httpStatus  string
	contentType string
	grpcStatus  string
	grpcMessage string
	body        []byte
}

// take takes in a frame. It returns true when the answer is complete and right,
// and an error that says what is wrong with it.
func (a *grpcAnswer) take(frame http2.Frame) (done bool, err error) {
	switch f := frame.(type) {
	case *http2.SettingsFrame:
		if !f.IsAck() {
			a.ack(a.framer.WriteSettingsAck)
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			a.ack(func() error { return a.framer.WritePing(true, f.Data) })
		}
	case *http2.GoAwayFrame:
		if f.LastStreamID < checkStream || f.ErrCode != http2.ErrCodeNo {
			fault := cut("the server ends the connection: ", f.ErrCode, f.DebugData())
			fault.Draining = f.ErrCode == http2.ErrCodeNo // it shuts down, and takes no new streams
			return false, fault
		}
	case *http2.RSTStreamFrame:
		if f.StreamID == checkStream {
			return false, cut("the server ends the request: ", f.ErrCode, nil)
		}
	case *http2.PushPromiseFrame:
		return false, notGRPC("a push, which was not allowed")
	case *http2.MetaHeadersFrame:
		if f.StreamID == checkStream {
			return a.header(f)
		}
	case *http2.DataFrame:
		if f.StreamID == checkStream {
			return a.data(f)
		}
	}
	return false, nil
}

// ack does what a server may ask for now and then. That the connection is cut
// meanwhile will be found in reading.
func (a *grpcAnswer) ack(write func() error) {
	if a.acks < maxGRPCAcks {
		a.acks++
		_ = write()
	}
}

// cut is an answer, however unwelcome: whoever is there speaks HTTP/2.
func cut(what string, code http2.ErrCode, said []byte) *Failure {
	text := what + code.String()
	if s := printable(said, maxExcerpt); s != "" {
		text += " " + strconv.Quote(s)
	}
	return &Failure{Reason: ProtocolErr, Text: text}
}

func (a *grpcAnswer) header(f *http2.MetaHeadersFrame) (bool, error) {
	if f.Truncated {
		return false, notGRPC("a header longer than allowed")
	}
	if !a.began {
		a.httpStatus = f.PseudoValue("status")
		if len(a.httpStatus) == 3 && a.httpStatus[0] == '1' && !f.StreamEnded() {
			return false, nil // an interim answer
		}
		a.began = true
	}
	for _, field := range f.RegularFields() {
		switch field.Name {
		case "content-type":
			a.contentType = field.Value
		case "grpc-status":
			a.grpcStatus = field.Value
		case "grpc-message":
			a.grpcMessage = field.Value
		}
	}
	return a.ended(f.StreamEnded())
}

func (a *grpcAnswer) data(f *http2.DataFrame) (bool, error) {
	if !a.began {
		return false, notGRPC("data before the header")
	}
	if len(a.body)+len(f.Data()) > maxGRPCMessage {
		if fault := a.httpFault(); fault != nil {
			return false, fault // the page of an error is longer, and of no interest
		}
		return false, notGRPC("a message longer than that of any health service")
	}
	a.body = append(a.body, f.Data()...)
	return a.ended(f.StreamEnded())
}

func (a *grpcAnswer) ended(yes bool) (bool, error) {
	if !yes {
		return false, nil
	}
	if f := a.failure(); f != nil {
		return false, f
	}
	return true, nil
}

// failure judges a complete answer; nil is a success.
func (a *grpcAnswer) failure() error {
	if fault := a.httpFault(); fault != nil {
		return fault
	}
	code, err := strconv.ParseUint(a.grpcStatus, 10, 8)
	switch {
	case a.grpcStatus == "":
		return notGRPC("it ends without grpc-status")
	case err != nil:
		return notGRPC("grpc-status " + quote(printable([]byte(a.grpcStatus), 16)))
	case code != 0:
		return a.refusal(code)
	}
	status, ok := servingStatus(a.body)
	if !ok {
		return notGRPC("its message is no HealthCheckResponse")
	}
	switch status {
	case 1:
		return nil
	case 2:
		return &Failure{Reason: GRPCStatus, Text: "gRPC NOT_SERVING", Draining: true}
	case 0:
		return &Failure{Reason: GRPCStatus, Text: "gRPC UNKNOWN: the server's health service has no status set; the server has to set SERVING when it serves"}
	case 3:
		return a.stranger("SERVICE_UNKNOWN")
	}
	return &Failure{Reason: GRPCStatus, Text: "gRPC serving status " + strconv.FormatUint(status, 10) + ", which means nothing here"}
}

// httpFault judges what lies below gRPC. What stands in front of a server answers
// in plain HTTP.
func (a *grpcAnswer) httpFault() error {
	switch {
	case len(a.httpStatus) != 3:
		return notGRPC("its HTTP status is " + strconv.Quote(printable([]byte(a.httpStatus), 8)))
	case a.httpStatus != "200":
		return &Failure{
			Reason: HTTPStatus, Text: "HTTP " + printable([]byte(a.httpStatus), 3) + " instead of a gRPC answer",
			Draining: a.httpStatus == "503",
		}
	case !strings.HasPrefix(a.contentType, "application/grpc"):
		return notGRPC("its content type is " + strconv.Quote(printable([]byte(a.contentType), 32)))
	}
	return nil
}

// The gRPC status codes of which more can be said than their names.
const (
	grpcNotFound         = 5
	grpcPermissionDenied = 7
	grpcUnimplemented    = 12
	grpcUnauthenticated  = 16
)

var grpcCodes = [...]string{
	"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
	"RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
}

// refusal says what an answer without a message means, and what to do where that
// is known.
func (a *grpcAnswer) refusal(code uint64) error {
	name := strconv.FormatUint(code, 10)
	if code < uint64(len(grpcCodes)) {
		name = grpcCodes[code]
	}
	f := &Failure{Reason: GRPCStatus, Text: "gRPC status " + name}
	switch code {
	case grpcNotFound:
		return a.stranger(name)
	case grpcUnimplemented:
		f.Text += ": the server has no grpc.health.v1.Health service; register one there, or check by tcp"
	case grpcPermissionDenied, grpcUnauthenticated:
		f.Text += ": the server wants credentials, and checks have none; exempt grpc.health.v1.Health there, or check by tcp"
	default:
		if s := printable([]byte(a.grpcMessage), maxExcerpt); s != "" {
			f.Text += " " + strconv.Quote(s)
		}
	}
	return f
}

// stranger says that the server does not know the service.
func (a *grpcAnswer) stranger(said string) error {
	const remedy = "; set a status for it there, or check the whole server (empty path)"
	const most = MaxError - len("gRPC status SERVICE_UNKNOWN: the server has no health of service \"\"") - len(remedy)
	if a.service == "" {
		return &Failure{Reason: GRPCStatus, Text: "gRPC " + said + `: the server has no health of the whole server, service ""; set a status for it there, or name a service that it knows`}
	}
	return &Failure{Reason: GRPCStatus, Text: "gRPC " + said + ": the server has no health of service " + strconv.Quote(printable([]byte(a.service), most)) + remedy}
}

// servingStatus returns the status of a HealthCheckResponse; false if the body is
// none. Fields that a newer health service may add are passed over.
func servingStatus(body []byte) (status uint64, ok bool) {
	const prefix = 5 // a flag for compression, which was not offered, and the length
	if len(body) < prefix || body[0] != 0 || int(binary.BigEndian.Uint32(body[1:])) != len(body)-prefix {
		return 0, false
	}
	for rest := body[prefix:]; len(rest) > 0; {
		tag, n := binary.Uvarint(rest)
		if n <= 0 {
			return 0, false
		}
		rest = rest[n:]
		switch tag & 7 {
		case 0:
			value, n := binary.Uvarint(rest)
			if n <= 0 {
				return 0, false
			}
			if tag>>3 == 1 {
				status = value
			}
			rest = rest[n:]
		case 1, 5:
			size := map[uint64]int{1: 8, 5: 4}[tag&7]
			if len(rest) < size {
				return 0, false
			}
			rest = rest[size:]
		case 2:
			size, n := binary.Uvarint(rest)
			if n <= 0 || size > uint64(len(rest)-n) { //nolint:gosec // Uvarint never takes more than there is
				return 0, false
			}
			rest = rest[n+int(size):] //nolint:gosec // within rest
		default:
			return 0, false
		}
	}
	return status, true
}
