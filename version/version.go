// Package version tells which version of eclusa a program is. The release build
// gives it a number with the linker; any other build has what the Go tool has
// noted down itself.
package version

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
)

// Both are set by the linker:
//
//	go build -ldflags "-X github.com/eclusa-lb/eclusa/version.number=v1.2.3"
var number, revision string

// unknown stands for what was not noted down.
const unknown = "unknown"

// An info is what there is to know.
type info struct{ number, revision string }

var read = sync.OnceValue(func() info {
	build, _ := debug.ReadBuildInfo()
	return from(info{number, revision}, build)
})

// from joins what the linker was told with what the Go tool knows, which may be
// nil.
func from(i info, build *debug.BuildInfo) info {
	if build != nil {
		if build.Main.Version != "(devel)" {
			i.number = cmp.Or(i.number, build.Main.Version)
		}
		commit, modified := "", ""
		for _, s := range build.Settings {
			switch s.Key {
			case "vcs.revision":
				commit = s.Value
			case "vcs.modified":
				if s.Value == "true" {
					modified = "-dirty"
				}
			}
		}
		if commit != "" {
			i.revision = cmp.Or(i.revision, commit+modified)
		}
	}
	return info{cmp.Or(i.number, unknown), cmp.Or(i.revision, unknown)}
}

// Number is the version, such as "v1.2.3", or "v1.2.3-4-g0123456789ab" for the
// fourth commit after it; "unknown" if nobody has said.
func Number() string { return read().number }

// Revision is the commit that the program was built from, with "-dirty" behind it
// if files had been changed; "unknown" if it was not built from a checkout.
func Revision() string { return read().revision }

// Go is the version of Go that has compiled the program.
func Go() string { return runtime.Version() }

// String is all of it in one line for people.
func String() string {
	return fmt.Sprintf("%s (revision %.12s, %s, %s/%s)", Number(), Revision(), Go(), runtime.GOOS, runtime.GOARCH)
}
