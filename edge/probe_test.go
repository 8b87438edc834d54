package edge

import (
	"testing"

	"github.com/eclusa-lb/eclusa/healthcheck"
)

// TestStoodIn: an answer that is wrong is an answer, for which nothing stands in.
func TestStoodIn(t *testing.T) {
	for reason, want := range map[healthcheck.Reason]bool{
		healthcheck.Refused: true, healthcheck.Timeout: true, healthcheck.Unreachable: true, healthcheck.Reset: true,
		healthcheck.HTTPStatus: false, healthcheck.GRPCStatus: false, healthcheck.ProtocolErr: false, healthcheck.TLSErr: false,
	} {
		if got := (probed{}).stoodIn(healthcheck.Result{Reason: reason}); got != want {
			t.Errorf("%s: got %v; want %v", reason, got, want)
		}
	}
}
