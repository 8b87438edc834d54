package version

import (
	"runtime/debug"
	"strings"
	"testing"
)

func TestFrom(t *testing.T) {
	settings := func(revision, modified string) []debug.BuildSetting {
		return []debug.BuildSetting{{Key: "vcs", Value: "git"}, {Key: "vcs.revision", Value: revision}, {Key: "vcs.modified", Value: modified}}
	}
	main := func(version string, settings ...debug.BuildSetting) *debug.BuildInfo {
		return &debug.BuildInfo{Main: debug.Module{Version: version}, Settings: settings}
	}
	for _, c := range []struct {
		name  string
		told  info
		build *debug.BuildInfo
		want  info
	}{
		{"a release", info{"v1.2.3", ""}, main("v1.2.3", settings("abc", "false")...), info{"v1.2.3", "abc"}},
		{"the linker knows better", info{"v1.2.3-4-gabc", "def"}, main("v1.2.4-0.20260102-abc", settings("abc", "true")...), info{"v1.2.3-4-gabc", "def"}},
		{"go install", info{}, main("v1.2.3"), info{"v1.2.3", "unknown"}},
		{"go build in a changed checkout", info{}, main("v0.0.0-20260102-abc+dirty", settings("abc", "true")...), info{"v0.0.0-20260102-abc+dirty", "abc-dirty"}},
		{"go test", info{}, main("(devel)"), info{"unknown", "unknown"}},
		{"no build information", info{}, nil, info{"unknown", "unknown"}},
		{"no build information, with a number", info{"v1", ""}, nil, info{"v1", "unknown"}},
	} {
		if got := from(c.told, c.build); got != c.want {
			t.Errorf("%s: got %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestString(t *testing.T) {
	for _, want := range []string{Number(), "revision ", Go(), "linux/"} {
		if !strings.Contains(String(), want) {
			t.Errorf("got %q, want it to tell %q", String(), want)
		}
	}
}
