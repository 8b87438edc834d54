package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/eclusa-lb/eclusa/bench/contender"
	"github.com/eclusa-lb/eclusa/bench/traffic"
)

func main() {
	if played, err := play(); played {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// play plays the role that the process was started for, if there is one.
func play() (bool, error) {
	text := os.Getenv(contender.RoleVariable)
	if text == "" {
		return false, nil
	}
	var r contender.Role
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return true, err
	}
	switch r.Name {
	case "engine":
		return true, contender.RunEngine(r.Argument)
	case "edge":
		return true, contender.RunEdge(r.Argument)
	case "probe":
		return true, probe(r.Argument)
	}
	// The others are a single loop, which nothing is to disturb.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(256 << 20)
	switch r.Name {
	case "hold":
		_, err := os.Stdin.Read(make([]byte, 1))
		_ = err // the end of the input, which ends this process
		return true, nil
	case "serve":
		runtime.LockOSThread()
		var node byte
		if err := json.Unmarshal(r.Argument, &node); err != nil {
			return true, err
		}
		return true, traffic.Serve(node)
	case "load":
		runtime.LockOSThread()
		var s traffic.Spec
		if err := json.Unmarshal(r.Argument, &s); err != nil {
			return true, err
		}
		result, err := traffic.Run(s)
		if err != nil {
			return true, err
		}
		if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
			return true, err
		}
		// Whoever waits reads the processor time before the process is gone.
		_, _ = os.Stdin.Read(make([]byte, 1))
		return true, nil
	}
	return true, fmt.Errorf("role %q: there is none of that name", r.Name)
}

// options are what the user wants.
type options struct {
	engines  []contender.Contender
	measures []measure
	rounds   int
	time     time.Duration
	data     string
	report   string
	probing  bool
}

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("network namespaces and nftables need root")
	}
	return o.bench(ctx)
}

func parse(args []string) (*options, error) {
	var all []string
	for _, c := range contender.All {
		all = append(all, c.Name())
	}
	kinds := []string{checker}
	for _, m := range measures {
		kinds = append(kinds, m.name)
	}
	o := &options{}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	engines := f.String("engines", strings.Join(all, ","), "what is compared; the first is what the others are compared with")
	names := f.String("measures", strings.Join(kinds, ","), "what is measured; \"healthcheck\" is not of an engine")
	f.IntVar(&o.rounds, "rounds", 5, "how often, each time in another order")
	f.DurationVar(&o.time, "time", time.Second, "how long each measurement takes")
	f.StringVar(&o.data, "data", "", "the file that samples are added to; those that it has already count too")
	f.StringVar(&o.report, "report", "", "the folder that the report is written to")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	wanted := strings.FieldsFunc(*names, func(r rune) bool { return r == ',' })
	if f.NArg() > 0 {
		return nil, fmt.Errorf("argument %q: there are only flags; see --help", f.Arg(0))
	}
	if i := slices.Index(wanted, checker); i >= 0 {
		o.probing = true
		wanted = slices.Delete(wanted, i, i+1)
	}
	for name := range strings.SplitSeq(*engines, ",") {
		c, err := contender.Find(name)
		if err != nil {
			return nil, err
		}
		o.engines = append(o.engines, c)
	}
	var err error
	o.measures, err = findMeasures(wanted)
	return o, err
}
